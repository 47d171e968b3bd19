"""Every strategy and kind of model from texts to a certified merge, to transformers and to a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from builders.build import Build, build
from contract.command import UsageError
from contract.files import read_json, read_json_lines
from contract.release import read_manifest
from tests.training.made_runs import write_sources
from tests.training.tiny_runs import options
from training.adapter import is_adapter
from training.assemble import read_task
from training.checkpoint import load_checkpoint, read_heldout
from training.finetune import Finetune, finetune
from training.merge import Merge
from training.merge import main as merge
from training.predict import Predict, predict

SHORT: dict[str, Any] = {"epochs": 1, "train_rows": 48}
KINDS: dict[str, dict[str, Any]] = {
    "none": {"strategy": "none"},
    "head": {"strategy": "head"},
    "first": {"strategy": "first"},
    "last": {"strategy": "last", "k": 2},
    "lora": {"targets": ("query", "value")},
    "rank-stabilised": {"rank": 5, "alpha": 7.0, "rslora": True},
    "masked": {"strategy": "masked", "mask_share": 0.2},
    "full": {"strategy": "full"},
    "scratch": {"strategy": "scratch", "scratch_size": (24, 3, 2, 40)},
    "scratch of fewer positions": {"strategy": "scratch", "scratch_size": (16, 1, 1, 8), "max_positions": 20},
    "fewer positions": {"strategy": "full", "max_positions": 16},
    "fewer positions, lora": {"max_positions": 16},
    "heads for each layer": {"strategy": "full", "heads": (2, 8)},
    "heads for each layer, lora": {"heads": (8, 1)},
}


def train_and_merge(folder: Path, run: Finetune) -> tuple[Path, Path]:
    """The trained folder and the merged one."""
    finetune(run)
    merge(Merge(checkpoint=run.output, output=folder / "merged"))
    return run.output, folder / "merged"


def saved_logits(checkpoint: Path) -> torch.Tensor:
    """Of the held-out texts, as the training wrote them down."""
    return torch.tensor([row["logits"] for row in read_json_lines(checkpoint / "predictions.jsonl")])


def predicted_logits(checkpoint: Path, output: Path) -> torch.Tensor:
    """Of the held-out texts, by `training.predict`."""
    predict(Predict(checkpoint=checkpoint, output=output))
    return torch.tensor([json.loads(line)["logits"] for line in output.read_text(encoding="utf-8").splitlines()])


@torch.no_grad()
def transformers_logits(merged: Path) -> torch.Tensor:
    """Of the held-out texts, with transformers' model and tokenizer; not one key is missing or left over."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        merged, output_loading_info=True, attn_implementation="eager"
    )
    assert {name: sorted(keys) for name, keys in report.items() if keys} == {}
    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = [row["text"] for row in read_heldout(merged)]
    return torch.cat([model.eval()(**tokenizer(text, truncation=True, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_every_kind_goes_from_texts_to_a_release(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = options(tmp_path / "trained", tiny_csv, tiny_base, **(SHORT | changes))
    trained, merged = train_and_merge(tmp_path, run)
    assert is_adapter(trained) == (run.strategy == "lora")
    assert (trained / "model.safetensors").exists() == (run.strategy != "lora")
    assert {path.stat().st_mode & 0o444 for path in trained.iterdir()} == {0o444}, "files that a server may not read"
    record = read_json(trained / "run.json")
    assert record["strategy"]["name"] == run.strategy
    assert len(record["epochs"]) == (0 if run.strategy == "none" else 1)
    assert 0 <= record["strategy"]["trainable"] <= record["strategy"]["total"]

    certificate = read_json(merged / "merge_certificate.json")
    assert certificate["passed"] is True
    assert bool(certificate["modules"]) == (run.strategy == "lora")
    expected = saved_logits(trained)
    for folder in (trained, merged):
        torch.testing.assert_close(predicted_logits(folder, tmp_path / "out.jsonl"), expected, atol=1e-5, rtol=0.0)

    build(Build(checkpoint=merged, output=tmp_path / "release", repository=tmp_path / "repository", probe_texts=8))
    assert read_manifest(tmp_path / "release").labels == ["animal", "plant"]
    if run.heads is None:  # transformers' BERT has one number of heads for all layers
        torch.testing.assert_close(transformers_logits(merged), expected, atol=1e-5, rtol=0.0)


def test_a_checkpoint_without_adapters_is_merged_into_the_same_tensors(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, merged = train_and_merge(tmp_path, options(tmp_path / "trained", tiny_csv, tiny_base, strategy="last", **SHORT))
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, merged))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert "no adapter to merge: every tensor is the trained one, bit for bit" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"merged is merged already\. Merge a folder of training\.finetune"):
        merge(Merge(checkpoint=merged, output=tmp_path / "twice"))


def test_none_evaluates_the_base_as_it_is(tiny_base: Path, tiny_csv: Path, tmp_path: Path) -> None:
    finetune(options(tmp_path / "none", tiny_csv, tiny_base, strategy="none"))
    record = read_json(tmp_path / "none" / "run.json")
    assert (record["epochs"], record["strategy"]["trainable"], record["test"]["samples"]) == ([], 0, 32)
    base, found = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "none"))
    assert all(torch.equal(found[f"bert.{name}"], tensor) for name, tensor in base.items())


@pytest.mark.parametrize(("strategy", "layer"), [("first", 0), ("last", 1)])
def test_first_trains_the_input_side_and_last_the_head_side(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, strategy: str, layer: int
) -> None:
    finetune(options(tmp_path / "new", tiny_csv, tiny_base, strategy=strategy, **SHORT))
    base, found = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "new"))
    moved = {name for name, tensor in base.items() if not torch.equal(found[f"bert.{name}"], tensor)}
    assert moved == {name for name in base if name.startswith(f"encoder.layer.{layer}.")}


def test_scratch_needs_no_weights_of_its_base_and_has_the_size_asked_for(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    (tmp_path / "vocabulary").mkdir()
    (tmp_path / "vocabulary" / "vocab.txt").write_bytes((tiny_base / "vocab.txt").read_bytes())
    changes: dict[str, Any] = {"strategy": "scratch", "scratch_size": (24, 3, 2, 40), "max_positions": 30}
    finetune(options(tmp_path / "new", tiny_csv, tmp_path / "vocabulary", **(SHORT | changes)))
    config = load_checkpoint(tmp_path / "new").model.config
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == (24, 3, 2, 40)
    assert config.max_position_embeddings == 30
    assert read_json(tmp_path / "new" / "run.json")["base"]["sha256"] is None
    merge(Merge(checkpoint=tmp_path / "new", output=tmp_path / "merged"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with their five numbers, of which `tags` is the same for all."""
    return write_sources(tmp_path_factory.mktemp("questions"))["stackoverflow"]


def tabular(output: Path, data: Path, base: Path, **changes: Any) -> Finetune:
    given: dict[str, Any] = {"dataset": "stackoverflow", "text": None, "label": None, "tabular": True}
    return options(output, data, base, **(SHORT | given | changes))


@pytest.mark.parametrize(
    ("strategy", "log"), [("lora", False), ("lora", True), ("full", True), ("masked", False), ("head", False)]
)
def test_numbers_beside_the_text_survive_the_round_trip(
    tiny_base: Path, questions: Path, tmp_path: Path, strategy: str, log: bool
) -> None:
    run = tabular(tmp_path / "trained", questions, tiny_base, strategy=strategy, log_features=log)
    trained, merged = train_and_merge(tmp_path, run)
    expected = saved_logits(trained)
    rows = list(read_heldout(merged))
    assert all(len(row["features"]) == 5 for row in rows)
    for folder in (trained, merged):
        torch.testing.assert_close(predicted_logits(folder, tmp_path / "out.jsonl"), expected, atol=1e-5, rtol=0.0)
    checkpoint = load_checkpoint(merged)
    changed = [row | {"features": [number + 500 for number in row["features"]]} for row in rows]
    encoded = checkpoint.encode(changed)
    assert encoded.features is not None
    with torch.no_grad():
        ids = torch.tensor([encoded.ids[0]])
        assert not torch.allclose(checkpoint.model(ids, features=encoded.features[:1])[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("log", [False, True], ids=["as they are", "logarithms"])
def test_numbers_are_scored_by_the_training_part_alone_and_a_constant_one_says_nothing(
    tiny_base: Path, questions: Path, tmp_path: Path, log: bool
) -> None:
    run = tabular(tmp_path / "trained", questions, tiny_base, strategy="head", train_rows=None, log_features=log)
    finetune(run)
    tensors = load_file(tmp_path / "trained" / "model.safetensors")
    record = read_json(tmp_path / "trained" / "run.json")
    assert record["data"]["features"] == ["account_age_days", "tags", "reputation", "title_words", "body_words"]
    task = read_task(run, progress=False)
    numbers = torch.tensor([task.dataset.features[row] for row in task.split.train], dtype=torch.float64)
    assert len(set(numbers[:, 1].tolist())) == 1, "the tags were meant to be constant"
    everything = torch.tensor(task.dataset.features, dtype=torch.float64)
    if log:
        numbers, everything = (part.sign() * torch.log(1 + part.abs()) for part in (numbers, everything))
    torch.testing.assert_close(tensors["tabular.mean"].double(), numbers.mean(0), rtol=1e-5, atol=1e-5)
    deviation = numbers.std(0)
    deviation[deviation == 0] = 1.0
    torch.testing.assert_close(tensors["tabular.std"].double(), deviation, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(everything.mean(0), numbers.mean(0), rtol=1e-3), "the parts are too alike to tell apart"


def test_the_tabular_head_is_a_linear_map_of_the_text_and_the_scores(tiny_base: Path, questions: Path, tmp_path: Path) -> None:
    finetune(tabular(tmp_path / "trained", questions, tiny_base, strategy="full"))
    checkpoint = load_checkpoint(tmp_path / "trained")
    model, encoded = checkpoint.model, checkpoint.encode(list(read_heldout(tmp_path / "trained")))
    assert model.tabular is not None
    assert encoded.features is not None
    with torch.no_grad():
        pooled = torch.cat([model.bert(torch.tensor([ids]), None, None) for ids in encoded.ids])
        scores = (encoded.features - model.tabular.mean) / model.tabular.std
        head = model.tabular.classifier
        expected = pooled @ head.weight[:, :32].T + scores @ head.weight[:, 32:].T + head.bias
    torch.testing.assert_close(saved_logits(tmp_path / "trained"), expected, atol=1e-5, rtol=0.0)


def test_transformers_finds_all_that_it_looks_for_in_a_tabular_checkpoint(
    tiny_base: Path, questions: Path, tmp_path: Path
) -> None:
    """It reads the text alone, with the head that a tabular model does not use; so it says what it left over."""
    finetune(tabular(tmp_path / "trained", questions, tiny_base, strategy="full"))
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained", output_loading_info=True)
    assert not report["missing_keys"]
    names = {"tabular.mean", "tabular.std", "tabular.classifier.weight", "tabular.classifier.bias"}
    assert set(report["unexpected_keys"]) == names


@pytest.mark.parametrize(
    ("row", "given"),
    [
        ({"text": "a cat"}, r"\[\]"),
        ({"text": "a", "features": [1, 2]}, r"\[1, 2\]"),
        ({"text": "a", "features": ["x"] * 5}, "x"),
    ],
)
def test_rows_without_the_numbers_are_refused(
    tiny_base: Path, questions: Path, tmp_path: Path, row: dict[str, Any], given: str
) -> None:
    finetune(tabular(tmp_path / "trained", questions, tiny_base, strategy="none"))
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=rf'"features" is .*{given}.*; .* reads 5 numbers beside each text'):
        predict(Predict(checkpoint=tmp_path / "trained", output=tmp_path / "out.jsonl", texts=tmp_path / "in.jsonl"))


def test_heads_for_each_layer_are_written_and_read_back_and_transformers_refuses_them(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    trained, merged = train_and_merge(tmp_path, options(tmp_path / "trained", tiny_csv, tiny_base, heads=(2, 8), **SHORT))
    for folder in (trained, merged):
        assert read_json(folder / "config.json")["num_attention_heads"] == [2, 8]
        config = load_checkpoint(folder).model.config
        assert config.num_attention_heads == (2, 8)
    with pytest.raises(StrictDataclassFieldValidationError, match=r"num_attention_heads[^$]*expected int, got list"):
        AutoModelForSequenceClassification.from_pretrained(merged)
