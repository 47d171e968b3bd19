"""`builders.tokenizer_contract`: what a tokenizer promises, and that it is the tokenizer's own doing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.tokenizer_contract import GOLDEN, PARTS, REFUSED, make_contract
from contract.tokenizer import CONTRACT_SCHEMA, ids_digest


@pytest.fixture(scope="module")
def tokenizer_json(merged: Path) -> bytes:
    return (merged / "tokenizer.json").read_bytes()


def test_the_same_tokenizer_has_the_same_contract(tokenizer_json: bytes) -> None:
    contract = make_contract(tokenizer_json)
    assert contract == make_contract(tokenizer_json)
    assert contract == json.loads(json.dumps(contract))
    assert contract["schema"] == CONTRACT_SCHEMA
    assert [golden["name"] for golden in contract["golden"]] == list(GOLDEN)
    assert contract["refused"] == list(REFUSED)
    assert len(json.dumps(contract)) < 20_000  # the 100,000 characters are not written out


@pytest.mark.parametrize("part", PARTS)
def test_a_change_of_any_part_changes_its_hash_alone(tokenizer_json: bytes, part: str) -> None:
    saved = json.loads(tokenizer_json)
    if part == "model":
        saved["model"]["vocab"]["neverseenbefore"] = len(saved["model"]["vocab"])
    elif part == "added_tokens":
        saved[part][0]["single_word"] = not saved[part][0]["single_word"]
    elif part == "truncation":
        saved[part]["max_length"] -= 1
    else:
        saved[part] = None
    before, after = make_contract(tokenizer_json)["parts"], make_contract(json.dumps(saved).encode())["parts"]
    assert {name for name in PARTS if before[name] != after[name]} == {part}


def test_golden_texts_show_a_change_of_case_accents_and_truncation(tokenizer_json: bytes) -> None:
    before = {golden["name"]: golden["sha256"] for golden in make_contract(tokenizer_json)["golden"]}

    def shown(**parts: object) -> set[str]:
        changed = make_contract(json.dumps(json.loads(tokenizer_json) | parts).encode())
        return {golden["name"] for golden in changed["golden"] if golden["sha256"] != before[golden["name"]]}

    saved = json.loads(tokenizer_json)
    assert "mixed case" in shown(normalizer=saved["normalizer"] | {"lowercase": False})
    assert {"accents", "combining marks"} <= shown(normalizer=saved["normalizer"] | {"strip_accents": False})
    assert "100,000 characters" in shown(truncation=saved["truncation"] | {"max_length": 12})
    assert shown() == set()


def test_the_digest_tells_ids_and_padding_apart() -> None:
    digests = {ids_digest(ids, pad) for ids, pad in (([1, 2, 3], 0), ([1, 2, 3], 1), ([1, 2], 3), ([3, 2, 1], 0), ([], 0))}
    assert len(digests) == 5


@pytest.mark.parametrize("broken", [b"{}", b"not JSON", b'{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match=r"this is no tokenizer\.json"):
        make_contract(broken)
