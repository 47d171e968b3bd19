"""`builders.quantize_trained`: the graph computes what was trained, by its scales, and the report says what that changed."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import builders.build
from builders.build import Build, build
from builders.engines import KINDS
from builders.onnx_export import build_onnx
from builders.parity import text_batches
from builders.quantize import insert_qdq, run_graph
from builders.quantize_trained import quantise_trained, tensor_ranges
from builders.ranges import product_inputs
from contract.command import Failure, UsageError
from contract.files import read_json, write_json
from contract.release import read_manifest
from tests.tiny import random_bert, random_encoded, tiny_config
from training.checkpoint import load_checkpoint
from training.evaluation import compute_logits
from training.fake_quantization import fake_quantize, input_grid, observe_inputs, quantized_linears, weight_scales
from training.trained_int8 import INT8_FILE, TrainedInt8, Validation, read_trained, read_validation

TOLERANCE = 1e-4
"""Of a row's logits, but for rows in which another order of sums sends a value to the next step of its grid."""


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_the_graph_computes_what_was_trained_with_the_scales_that_were_trained_with(std: float) -> None:
    model = random_bert(tiny_config(), seed=4, std=std)
    encoded = random_encoded(60, model.config, longest=30)
    ranges = observe_inputs(model, encoded, progress=False)["99.9"]
    graph = build_onnx(model, joint_attention=False)
    products = product_inputs(graph)
    assert {f"{path}.matmul" for path in quantized_linears(model)} == set(products)
    quantised = insert_qdq(graph, tensor_ranges(graph, ranges), list(products))
    exact = compute_logits(model, encoded, tokens_per_batch=4096).numpy()
    fake_quantize(model, ranges)
    ours = compute_logits(model, encoded, tokens_per_batch=4096).numpy()
    theirs = run_graph(quantised, text_batches(encoded, model.config.pad_token_id), ours.shape)
    apart = np.abs(theirs - ours).max(axis=1)
    assert (apart <= TOLERANCE).mean() >= 0.75
    assert apart.max() <= np.abs(ours - exact).max(), "a step more or less is a part of the error of int8"
    constants = {item.name: numpy_helper.to_array(item) for item in quantised.graph.initializer}
    for path, module in quantized_linears(model).items():
        tensor = products[f"{path}.matmul"]
        assert (constants[f"{tensor}_scale"], constants[f"{tensor}_zero_point"]) == input_grid(ranges[path])
        np.testing.assert_array_equal(constants[f"{path}.weight.T_scale"], weight_scales(module.weight).numpy())


def test_ranges_that_do_not_fit_the_graph_are_refused() -> None:
    model = random_bert(tiny_config())
    graph = build_onnx(model, joint_attention=False)
    paths = list(quantized_linears(model))
    with pytest.raises(UsageError, match="not those of this model: x is in one of the two alone"):
        tensor_ranges(graph, dict.fromkeys([*paths, "x"], (-1.0, 1.0)))
    with pytest.raises(UsageError, match=r"layer\.0\.attention\.self\.key shares its input and not its range"):
        tensor_ranges(graph, dict.fromkeys(paths, (-1.0, 1.0)) | {"bert.encoder.layer.0.attention.self.key": (-2.0, 2.0)})


@pytest.fixture(scope="module")
def trained(trained_int8: Path) -> tuple[TrainedInt8, Validation]:
    found = read_trained(trained_int8)
    assert found is not None
    return found, read_validation(trained_int8, load_checkpoint(trained_int8).labels)


def test_the_report_shows_static_and_trained_int8_and_pairs_them(
    trained_int8: Path, trained: tuple[TrainedInt8, Validation]
) -> None:
    checkpoint, (facts, validation) = load_checkpoint(trained_int8), trained
    _, report = quantise_trained(checkpoint.model, checkpoint.tokenizer, facts, validation)
    said = report.markdown()
    assert said.startswith("int8 with the ranges that the weights were trained with: percentile ")
    assert "| static, before the training | " in said
    assert "| trained | " in said
    assert re.search(r"trained beside static int8: accuracy .* \(\d+ lost, \d+ won, McNemar p ", said.splitlines()[-1])
    assert report.change is not None
    assert report.change.rows == report.validation_texts == len(validation.texts)
    fake_quantize(checkpoint.model, facts.ranges)
    encoded = checkpoint.encode([{"text": text} for text in validation.texts])
    error = np.abs(compute_logits(checkpoint.model, encoded, tokens_per_batch=384).numpy() - np.array(validation.fp32)).mean()
    assert report.quantised.error == pytest.approx(error, rel=0.25)


def test_texts_without_labels_have_no_accuracy(trained_int8: Path, trained: tuple[TrainedInt8, Validation]) -> None:
    checkpoint, (facts, validation) = load_checkpoint(trained_int8), trained
    unlabelled = dataclasses.replace(validation, labels=[])
    _, report = quantise_trained(checkpoint.model, checkpoint.tokenizer, dataclasses.replace(facts, epoch=0), unlabelled)
    assert report.change is None
    assert report.markdown().endswith("the texts have no labels: no accuracy to compare")
    assert "no epoch, since none was better than static int8" in report.markdown()


def test_a_graph_that_answers_otherwise_than_fp32_is_a_failure_with_the_table(
    trained_int8: Path, trained: tuple[TrainedInt8, Validation]
) -> None:
    checkpoint, (facts, validation) = load_checkpoint(trained_int8), trained
    opposite = dataclasses.replace(validation, fp32=[[-logit for logit in logits] for logits in validation.fp32])
    with pytest.raises(Failure, match=r"loses too much on the validation part.*\n(.*\n)*\| trained \| "):
        quantise_trained(checkpoint.model, checkpoint.tokenizer, facts, opposite)


def run_build(checkpoint: Path, folder: Path, **options: Any) -> None:
    build(Build(checkpoint=checkpoint, output=folder / "release", repository=folder / "repository", **options))


def test_a_release_has_the_trained_scales_and_needs_no_data(
    trained_int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(trained_int8, tmp_path / "copied"))
    run = read_json(copied / "run.json")
    run["configuration"]["data"] = str(tmp_path / "gone.csv")
    write_json(copied / "run.json", run)
    run_build(copied, tmp_path, precision="int8", quantization_report=tmp_path / "report")
    assert "int8 with the ranges that the weights were trained with" in capsys.readouterr().out
    assert read_manifest(tmp_path / "release").precision == "int8"
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"quantization.json", "quantization.md"}
    (path,) = (tmp_path / "release").rglob("model.onnx")
    constants = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    facts = read_trained(trained_int8)
    assert facts is not None
    trained = facts.ranges["bert.encoder.layer.0.attention.self.key"]
    assert (constants["embeddings_scale"], constants["embeddings_zero_point"]) == input_grid(trained)
    assert read_json(tmp_path / "report" / "quantization.json")["trained"]["percentile"] == facts.percentile


def test_other_calibration_texts_for_trained_ranges_are_refused(trained_int8: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="brings the ranges that it was trained with; leave them out"):
        run_build(trained_int8, tmp_path, precision="int8", calibration_texts=tmp_path / "texts.txt")
    assert list(tmp_path.iterdir()) == []


def test_ranges_of_other_weights_are_refused(trained_int8: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained_int8, tmp_path / "copied"))
    write_json(copied / INT8_FILE, read_json(copied / INT8_FILE) | {"weights_sha256": "0" * 64})
    with pytest.raises(UsageError, match="belongs to other weights"):
        run_build(copied, tmp_path, precision="int8")


@pytest.mark.parametrize("error", [Failure("loses too much"), UsageError("no texts")], ids=["failure", "usage error"])
def test_auto_does_not_quantise_again_after_a_failure(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls: list[Sequence[Any]] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        calls.append(arguments)
        raise error

    monkeypatch.setattr(builders.build, "quantise_model", refuse)
    monkeypatch.setattr(
        builders.build, "runnable_kinds", lambda precision, flags: [kind for kind in KINDS if kind.precision == "int8"]
    )
    with pytest.raises(Failure, match=f"onnxruntime int8: {error}\nopenvino int8: {error}"):
        run_build(merged, tmp_path, engine="auto")
    assert len(calls) == 1
