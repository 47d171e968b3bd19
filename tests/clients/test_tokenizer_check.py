"""`clients.tokenizer_check`: a tokenizer is compared with what its release promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from clients.errors import BadRequest
from clients.tokenizer_check import TokenizerCheck, check_tokenizer, compare
from contract.command import Failure, UsageError
from contract.tokenizer import ids_digest
from serving.state import ServerState
from tests.clients.sockets import closed_url

IDS = {"a": [1, 5, 2], "bb": [1, 6, 6, 2]}
CONTRACT: dict[str, Any] = {
    "schema": 1,
    "pad_id": 0,
    "golden": [
        {"name": "one", "text": "a", "times": 1, "sha256": ids_digest([1, 5, 2], 0), "first_ids": [1, 5], "tokens": 3},
        {"name": "two", "text": "b", "times": 2, "sha256": ids_digest([1, 6, 6, 2], 0), "first_ids": [1, 6], "tokens": 4},
    ],
    "refused": ["", " "],
}


def tokenize(text: bytes) -> tuple[list[int], str]:
    """A tokenizer that keeps the contract."""
    if not text.strip():
        raise BadRequest("empty")
    return IDS[text.decode()], "first"


def test_a_tokenizer_that_keeps_the_contract_passes() -> None:
    compare(CONTRACT, "first", tokenize)


def test_the_first_text_with_other_ids_is_named() -> None:
    with pytest.raises(Failure, match=r"two: 'b' x 2 gives 2 tokens, \[1, 2\]; the release was built with 4, \[1, 6\]"):
        compare(CONTRACT, "first", lambda text: ([1, 2], "first") if text == b"bb" else tokenize(text))


def test_another_padding_id_is_another_tokenizer() -> None:
    with pytest.raises(Failure, match="one: 'a' x 1"):
        compare(CONTRACT | {"pad_id": 7}, "first", tokenize)


def test_another_release_is_told_before_its_ids_are_compared() -> None:
    with pytest.raises(Failure, match="release first answers, the contract is that of second; name its version"):
        compare(CONTRACT, "second", tokenize)


def test_a_text_that_should_have_been_refused_is_named() -> None:
    with pytest.raises(Failure, match="' ' is no text, and the tokenizer takes it"):
        compare(CONTRACT, "first", lambda text: ([], "first") if text == b" " else tokenize(text))


@pytest.mark.server
def test_the_served_tokenizer_keeps_its_releases_contract_and_no_other(
    server: ServerState, release: Path, tmp_path: Path
) -> None:
    assert check_tokenizer(TokenizerCheck(release=release, url=server.grpc_url)) >= 10
    assert check_tokenizer(TokenizerCheck(release=release, url=server.grpc_url, version="1")) >= 10
    changed = tmp_path / "changed"
    shutil.copytree(release, changed)
    path = changed / "bert_tokenizer" / "contract.json"
    contract = json.loads(path.read_text())
    contract["golden"][2]["sha256"] = "0" * 64
    path.write_text(json.dumps(contract))
    with pytest.raises(Failure, match=f"^{contract['golden'][2]['name']}: "):
        check_tokenizer(TokenizerCheck(release=changed, url=server.grpc_url))
    path.write_text(json.dumps(contract | {"schema": 2}))
    with pytest.raises(UsageError, match="has schema 2; this version reads 1"):
        check_tokenizer(TokenizerCheck(release=changed, url=server.grpc_url))
    with pytest.raises(Failure, match="Unavailable"):
        check_tokenizer(TokenizerCheck(release=release, url=server.grpc_url, version="9"))


def test_a_folder_without_a_contract_and_an_absent_server_are_told(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*contract\.json"):
        check_tokenizer(TokenizerCheck(release=tmp_path))
    with pytest.raises(Failure, match=r"Unavailable: .*is the server running"):
        check_tokenizer(TokenizerCheck(release=release, url=closed_url()))
    with pytest.raises(UsageError, match=r"--timeout-s is 0\.0; it must be above 0"):
        TokenizerCheck(release=release, timeout_s=0.0)
