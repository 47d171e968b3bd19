"""`training.quantize_aware`: whole runs on a tiny model, what they write, and every reason to refuse."""

from __future__ import annotations

import copy
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from contract.command import Failure, UsageError
from contract.files import read_json, read_json_lines, write_json, write_json_lines
from tests.tiny import random_bert, random_encoded, tiny_config
from tests.training.tiny_runs import result_of, signalled
from training.batches import Encoded
from training.bert import BertForSequenceClassification
from training.checkpoint import check_certified, heldout_rows, load_checkpoint
from training.evaluation import compute_logits
from training.fake_quantization import fake_quantize, observe_inputs
from training.loop import Plan, Training
from training.pretrained import read_weights
from training.quantize_aware import QuantizeAware, distilled, quantize_aware
from training.state import state_folder
from training.trained_int8 import INT8_FILE, ROWS_FILE, read_trained, read_validation


def options(merged: Path, output: Path, **changes: Any) -> QuantizeAware:
    """A run on the CPU, on as few texts as show what it does."""
    given: dict[str, Any] = {"train_rows": 40, "calibration_rows": 20, "tokens_per_batch": 96, "device": "cpu"}
    return QuantizeAware(checkpoint=merged, output=output, **(given | changes))


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> Path:
    """A merged checkpoint that a test may damage."""
    return Path(shutil.copytree(merged, tmp_path / "copied"))


def test_the_checkpoint_is_certified_and_its_figures_are_those_of_int8(trained_int8: Path, merged: Path) -> None:
    check_certified(trained_int8)
    checkpoint, before = load_checkpoint(trained_int8), load_checkpoint(merged)
    assert (checkpoint.labels, checkpoint.max_length) == (before.labels, before.max_length)
    assert heldout_rows(trained_int8, 1000) == heldout_rows(merged, 1000)
    trained = read_trained(trained_int8)
    assert trained is not None
    fake_quantize(checkpoint.model, trained.ranges)
    logits = compute_logits(checkpoint.model, checkpoint.encode(heldout_rows(trained_int8, 1000)), tokens_per_batch=384)
    written = torch.tensor([row["logits"] for row in read_json_lines(trained_int8 / "predictions.jsonl")])
    torch.testing.assert_close(logits, written, rtol=0, atol=1e-5)
    run = read_json(trained_int8 / "run.json")
    assert run["strategy"]["name"] == "full"
    assert run["configuration"]["weight_decay"] == 0
    assert "rounded to int8, ranges of percentile" in run["strategy"]["description"]


def test_the_validation_rows_hold_the_answers_before_the_training(trained_int8: Path, merged: Path) -> None:
    before = load_checkpoint(merged)
    rows = read_validation(trained_int8, before.labels)
    encoded = before.encode([{"text": text} for text in rows.texts])
    fp32 = compute_logits(before.model, encoded, tokens_per_batch=384)
    torch.testing.assert_close(torch.tensor(rows.fp32), fp32, rtol=0, atol=1e-5)
    trained = read_trained(trained_int8)
    assert trained is not None
    fake_quantize(before.model, trained.ranges)
    static = compute_logits(before.model, encoded, tokens_per_batch=384)
    torch.testing.assert_close(torch.tensor(rows.static), static, rtol=0, atol=1e-5)
    assert not torch.equal(static, fp32)
    assert len(rows.labels) == len(rows.texts) == read_json(merged / "run.json")["data"]["parts"]["validation"]["rows"]


def test_weights_that_no_epoch_made_better_stay_as_they_were(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize_aware(options(merged, tmp_path / "int8", learning_rate=0.5))
    said = capsys.readouterr().out
    assert "no epoch made int8 better, and the weights stay as they were; lower --learning-rate" in said
    assert "test, untrained: " in said
    before, after = read_weights(merged), read_weights(tmp_path / "int8")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    trained = read_trained(tmp_path / "int8")
    assert trained is not None
    assert trained.epoch == 0


def test_a_stopped_run_is_continued_to_the_same_bits(merged: Path, tmp_path: Path) -> None:
    whole, changes = tmp_path / "whole", {"epochs": 2, "distillation": 0.5, "learning_rate": 1e-3}
    quantize_aware(options(merged, whole, **changes))
    assert result_of(whole)["epochs"][-1]["best"], "an epoch whose weights are not kept shows nothing"
    run = options(merged, tmp_path / "run", **changes, resume=True)
    for forward, training in ((3, True), (20, False)):
        with pytest.raises(SystemExit), signalled(signal.SIGTERM, forward=forward, training=training):
            quantize_aware(run)
        assert not run.output.exists()
    with pytest.raises(UsageError, match=r"--resume cannot continue .*distillation was 0\.5, is 1\.0"):
        quantize_aware(options(merged, run.output, **(changes | {"distillation": 1.0}), resume=True))
    quantize_aware(run)
    assert result_of(run.output) == result_of(whole)
    for name in (INT8_FILE, ROWS_FILE):
        assert (run.output / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(UsageError, match=r"finished run of --distillation 0\.5; name another output"):
        quantize_aware(options(merged, run.output, **(changes | {"distillation": 1.0}), resume=True))
    assert not state_folder(run.output).exists()


@torch.no_grad()
def spoil(model: BertForSequenceClassification, factor: float) -> None:
    """Make one channel of each attention's output `factor` times as large, and the weights that read it as much smaller.

    In floating point nothing changes; in int8 the channel takes the whole range of the tensor.
    """
    for number in range(model.config.num_hidden_layers):
        attention = f"bert.encoder.layer.{number}.attention"
        value, output = model.get_submodule(f"{attention}.self.value"), model.get_submodule(f"{attention}.output.dense")
        assert isinstance(value, nn.Linear)
        assert isinstance(output, nn.Linear)
        value.weight[0] *= factor
        value.bias[0] *= factor
        output.weight[:, 0] /= factor


def test_training_brings_int8_with_an_outlier_channel_nearer_to_fp32() -> None:
    model = random_bert(tiny_config(), seed=3, std=0.2)
    train, validation = random_encoded(400, model.config, seed=0), random_encoded(60, model.config, seed=1)

    def answer(of: BertForSequenceClassification, part: Encoded) -> torch.Tensor:
        return compute_logits(of, part, tokens_per_batch=4096)

    plain = answer(model, validation)
    spoil(model, 500)
    fp32 = answer(model, validation)
    torch.testing.assert_close(fp32, plain, rtol=0, atol=1e-4)
    student = copy.deepcopy(model)
    fake_quantize(student, observe_inputs(model, train, progress=False)["99.9"])
    static = (answer(student, validation) - fp32).abs().mean().item()
    train, validation = (distilled(part, answer(model, part), 1.0) for part in (train, validation))
    plan = Plan(
        epochs=4,
        learning_rate=3e-4,
        weight_decay=0.0,
        warmup_share=0.06,
        tokens_per_batch=96,
        dtype=torch.float32,
        seed=0,
    )
    Training(student, train, validation, plan, progress=False).fit(lambda result: None)
    trained = (answer(student, validation) - fp32).abs().mean().item()
    assert static > 0.3, "int8 is bad on purpose"
    assert trained < 0.75 * static


def test_targets_are_the_probabilities_of_fp32_mixed_with_the_labels() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    part = Encoded([[1], [2]], [0, 1], [False, False])
    soft = distilled(part, logits, 1.0).targets
    assert soft is not None
    torch.testing.assert_close(soft, logits.softmax(1))
    mixed = distilled(part, logits, 0.25).targets
    assert mixed is not None
    torch.testing.assert_close(mixed, 0.25 * logits.softmax(1) + 0.75 * torch.eye(2))


def test_texts_without_labels_are_trained_on_and_held_out_ones_are_not(merged: Path, tmp_path: Path) -> None:
    held = heldout_rows(merged, 5)
    texts = ["the cat", "a fern", "we saw moss", "old dog", "The  cat", *(row["text"].upper() for row in held)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    quantize_aware(options(merged, tmp_path / "int8", texts=tmp_path / "texts.txt"))
    rows = read_validation(tmp_path / "int8", load_checkpoint(merged).labels)
    assert rows.labels == []
    trained = read_trained(tmp_path / "int8")
    assert trained is not None
    assert trained.trained_texts + len(rows.texts) == 4
    assert trained.origin == "the training part of texts"
    assert heldout_rows(tmp_path / "int8", 1000) == heldout_rows(merged, 1000)


@pytest.mark.parametrize("content", ["", "one\n", "one\n ONE\n"])
def test_a_file_without_texts_is_refused(merged: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "texts.txt").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"texts\.txt has [01] text\(s\) that are not held out; at least 2 are needed"):
        quantize_aware(options(merged, tmp_path / "int8", texts=tmp_path / "texts.txt"))
    assert not (tmp_path / "int8").exists()
    assert not state_folder(tmp_path / "int8").exists()


def test_data_that_is_gone_is_an_error_that_names_the_way_out(copied: Path, tmp_path: Path) -> None:
    run = read_json(copied / "run.json")
    run["configuration"]["data"] = str(tmp_path / "gone.csv")
    write_json(copied / "run.json", run)
    with pytest.raises(UsageError, match=r"cannot be read again .*; pass texts like those of training by --texts FILE"):
        quantize_aware(options(copied, tmp_path / "int8"))


def test_an_unmerged_checkpoint_is_refused(finetuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no merge_certificate\.json: merge it first"):
        quantize_aware(options(finetuned, tmp_path / "int8"))


def test_changed_weights_are_refused(copied: Path, tmp_path: Path) -> None:
    path = copied / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"its certificate says .*: merge again"):
        quantize_aware(options(copied, tmp_path / "int8"))


def test_a_model_that_reads_numbers_beside_the_text_is_refused(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(copied)
    checkpoint.model.config = tiny_config(num_features=2)
    monkeypatch.setattr("training.quantize_aware.load_checkpoint", lambda folder: checkpoint)
    with pytest.raises(
        UsageError, match=r"reads numbers beside the text, which training for int8 does not take; .*int8 quantises it without"
    ):
        quantize_aware(options(copied, tmp_path / "int8"))


def test_a_model_whose_logits_are_no_numbers_is_a_failure(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(copied)
    checkpoint.model.classifier.bias.data[0] = float("nan")
    monkeypatch.setattr("training.quantize_aware.load_checkpoint", lambda folder: checkpoint)
    with pytest.raises(Failure, match="are not finite; its training diverged: train it again"):
        quantize_aware(options(copied, tmp_path / "int8"))
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibration_rows": 0}, "--calibration-rows is 0; it must be at least 1"),
        ({"distillation": 1.5}, r"--distillation is 1\.5; it must be in \[0, 1\]"),
        ({"distillation": float("nan")}, "--distillation is nan"),
        ({"texts": Path("a.txt"), "distillation": 0.5}, r"--distillation is 0\.5, which needs labels, and --texts have none"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options(Path("merged"), Path("int8"), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "last", "k": 7}, "--strategy last with its --k: k is 7; the model has 2 layers"),
        ({"learning_rate": -1.0}, r"--learning-rate -1\.0"),
        ({"train_rows": 0}, "--train-rows is 0; it must be at least 1"),
        ({"epochs": 0}, "--epochs is 0; it must be at least 1"),
    ],
    ids=["k", "learning rate", "rows", "epochs"],
)
def test_options_that_do_not_fit_the_run_are_refused(merged: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        quantize_aware(options(merged, tmp_path / "int8", **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def damaged(trained_int8: Path, tmp_path: Path) -> Path:
    """A checkpoint trained for int8 that a test may damage."""
    return Path(shutil.copytree(trained_int8, tmp_path / "damaged"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ranges": {}}, "the range of any layer is none"),
        ({"ranges": {"a": [0.5, 1.0]}}, "the range of a is none"),
        ({"ranges": {"a": [0.0]}}, "holds no trained ranges"),
        ({"extra": 1}, "holds no trained ranges"),
        ({"weights_sha256": "0"}, "belongs to other weights than"),
    ],
    ids=["none", "without 0", "half", "a foreign key", "other weights"],
)
def test_a_damaged_file_of_ranges_is_refused(damaged: Path, changes: dict[str, Any], said: str) -> None:
    write_json(damaged / INT8_FILE, read_json(damaged / INT8_FILE) | changes)
    with pytest.raises(UsageError, match=said):
        read_trained(damaged)


@pytest.mark.parametrize("change", [{"label": "mineral"}, {"fp32": [1.0]}, {"static": None}, {"label": None}])
def test_damaged_validation_rows_are_refused(damaged: Path, change: dict[str, Any]) -> None:
    first, *rest = read_json_lines(damaged / ROWS_FILE)
    write_json_lines(damaged / ROWS_FILE, [first | change, *rest])
    with pytest.raises(UsageError, match=f"{ROWS_FILE} is damaged"):
        read_validation(damaged, load_checkpoint(damaged).labels)


def test_any_other_checkpoint_was_not_trained_for_int8(merged: Path) -> None:
    assert read_trained(merged) is None
