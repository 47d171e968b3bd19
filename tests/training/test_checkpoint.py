"""`training.checkpoint`: what the commands wrote loads again, here and in transformers; half a folder is refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from contract.command import UsageError
from contract.files import read_json, sha256_of, write_json, write_json_lines
from tests.fixtures import TINY_RUN
from tests.tiny import padded_batch, tiny_texts
from training.checkpoint import (
    HELDOUT_FILE,
    check_certified,
    heldout_rows,
    load_checkpoint,
    read_heldout,
    write_tokenizer_config,
)
from training.lora import lora_modules
from training.merge import merge_lora
from training.pretrained import read_labels


@pytest.fixture
def copied(finetuned: Path, tmp_path: Path) -> Path:
    """A copy of the fine-tuned checkpoint to break."""
    return Path(shutil.copytree(finetuned, tmp_path / "checkpoint"))


def with_own_base(checkpoint: Path, base: Path, folder: Path) -> Path:
    """Point the checkpoint at a copy of its base in `folder`, to break that; the copy."""
    copy = Path(shutil.copytree(base, folder / "base"))
    config = read_json(checkpoint / "adapter_config.json")
    write_json(checkpoint / "adapter_config.json", config | {"base_model_name_or_path": str(copy)})
    return copy


def test_a_fine_tuned_checkpoint_loads_with_its_adapters_apart(finetuned: Path) -> None:
    checkpoint = load_checkpoint(finetuned)
    assert not checkpoint.merged
    assert (checkpoint.labels, checkpoint.max_length) == (["animal", "plant"], TINY_RUN["max_length"])
    assert len(list(lora_modules(checkpoint.model))) == 13
    assert {(module.rank, module.alpha) for _, module in lora_modules(checkpoint.model)} == {(4, 8.0)}
    assert not checkpoint.model.training
    assert checkpoint.run == read_json(finetuned / "run.json")


def test_a_merged_checkpoint_loads_as_plain_bert_with_equal_logits(finetuned: Path, merged: Path) -> None:
    apart, plain = load_checkpoint(finetuned), load_checkpoint(merged)
    assert plain.merged
    assert not list(lora_modules(plain.model))
    assert (plain.labels, plain.max_length) == (apart.labels, apart.max_length)
    assert plain.tokenizer.to_str() == apart.tokenizer.to_str()
    ids, mask = padded_batch(plain.model.config, [16, 3])
    with torch.no_grad():
        torch.testing.assert_close(plain.model(ids, mask), apart.model(ids, mask), atol=1e-5, rtol=0.0)
        assert torch.equal(plain.model(ids, mask), merge_lora(apart.model)(ids, mask))


@pytest.mark.parametrize("kind", ["finetuned", "merged"])
def test_transformers_tokenizes_as_the_checkpoint_does(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    ours, theirs = load_checkpoint(folder).tokenizer, AutoTokenizer.from_pretrained(folder)
    assert theirs.model_max_length == 16
    texts = [text for text, _ in tiny_texts(20)] + ["Unknown: ωβ!", ""]
    expected = theirs(texts, truncation=True)["input_ids"]
    assert max(map(len, expected)) == 16
    assert [ours.encode(text).ids for text in texts] == expected


def test_a_checkpoint_that_keeps_the_end_of_texts_does_so_in_transformers_too(copied: Path) -> None:
    run = read_json(copied / "run.json")
    run["configuration"]["truncation_side"] = "left"
    write_json(copied / "run.json", run)
    write_tokenizer_config(copied, run)
    ours, theirs = load_checkpoint(copied).tokenizer, AutoTokenizer.from_pretrained(copied)
    long = " ".join(text for text, _ in tiny_texts(20))
    assert ours.encode(long).ids == theirs(long, truncation=True)["input_ids"]
    assert ours.encode(long).ids[1:-1] == theirs(long, add_special_tokens=False)["input_ids"][-14:]


def test_the_heldout_rows_are_texts_with_their_labels(finetuned: Path) -> None:
    rows = list(read_heldout(finetuned))
    known = dict(tiny_texts(160))
    assert len(rows) == 32
    assert all(row.keys() == {"text", "label"} and known[row["text"]] == row["label"] for row in rows)


def test_a_few_heldout_rows_are_of_every_class_of_data_in_the_order_of_its_classes(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "animal" if number < 50 else "plant"} for number in range(100)]
    write_json_lines(tmp_path / HELDOUT_FILE, rows)
    assert heldout_rows(tmp_path, 4) == [rows[0], rows[25], rows[50], rows[75]]
    assert heldout_rows(tmp_path, 1000) == rows
    write_json_lines(tmp_path / HELDOUT_FILE, [])
    with pytest.raises(UsageError, match="holds no texts to compare the logits on"):
        heldout_rows(tmp_path, 4)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "run.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_name(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UsageError, match=rf"is not a checkpoint: {name} is missing; python -m training\.finetune"):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", "{", r"cannot read .*config\.json as JSON"),
        ("run.json", "{", r"cannot read .*run\.json as JSON"),
        ("run.json", "{}", r"run\.json"),
        ("run.json", '{"configuration": {"max_length": 16}}', r"run\.json"),
        ("tokenizer.json", "{", r"tokenizer\.json cannot be read"),
        ("adapter_config.json", "{", r"cannot read .*adapter_config\.json as JSON"),
        ("adapter_config.json", "{}", r"adapter_config\.json"),
    ],
)
def test_a_broken_file_is_refused_by_name(copied: Path, name: str, content: str, named: str) -> None:
    (copied / name).write_text(content)
    with pytest.raises(UsageError, match=named):
        load_checkpoint(copied)


def test_a_folder_without_weights_of_either_kind_is_refused(copied: Path) -> None:
    (copied / "adapter_config.json").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors is missing"):
        load_checkpoint(copied)


def test_a_certificate_without_its_weights_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(merged, tmp_path / "merged"))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model\.safetensors is missing: merge again"):
        check_certified(copy)


def test_a_base_that_changed_since_is_refused_by_its_hash(copied: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = with_own_base(copied, tiny_base, tmp_path)
    load_checkpoint(copied)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    found, wanted = sha256_of(base / "model.safetensors"), sha256_of(tiny_base / "model.safetensors")
    with pytest.raises(UsageError, match=f"the base .* has sha256 {found}, but .* was trained on {wanted}"):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    "remove", [shutil.rmtree, lambda base: (base / "model.safetensors").unlink()], ids=["the folder", "its weights"]
)
def test_a_base_that_is_gone_is_refused(
    copied: Path, tiny_base: Path, tmp_path: Path, remove: Callable[[Path], object]
) -> None:
    remove(with_own_base(copied, tiny_base, tmp_path))
    with pytest.raises(UsageError, match=r"does not exist|is missing"):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    "config", [{}, {"id2label": ["a", "b"]}, {"id2label": {"0": "a", "2": "b"}}, {"id2label": {"a": "0", "b": "1"}}]
)
def test_labels_that_are_not_numbered_from_0_up_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has no id2label from 0 up"):
        read_labels(config, Path("folder"))


def test_more_than_ten_labels_keep_the_order_of_their_numbers() -> None:
    names = {str(number): f"class {number}" for number in reversed(range(12))}
    assert read_labels({"id2label": names}, Path("folder")) == [f"class {number}" for number in range(12)]


def test_the_written_config_is_the_models_own(finetuned: Path) -> None:
    checkpoint = load_checkpoint(finetuned)
    config = read_json(finetuned / "config.json")
    sizes = dataclasses.asdict(checkpoint.model.config)
    for name in ("num_labels", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        del sizes[name]
    assert {name: config[name] for name in sizes} == sizes
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "animal", "1": "plant"}
    assert config["label2id"] == {"animal": 0, "plant": 1}
