"""Engines of a checkpoint that reads numbers beside the text: each is the checkpoint's equal, or is refused with what works.

Shapes: B batch, T tokens, F numeric features.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from builders.bench import Bench, bench
from builders.build import Build, build, check_served
from builders.calibration import read_calibration
from builders.engines import Source, find_kind, write_files
from builders.graph_runner import graph_engine
from builders.graph_writer import Typing
from builders.hardware import cpu_flags
from builders.model_config import CONFIGS, parse
from builders.onnx_export import build_onnx
from builders.parity import BOUNDS, feed_of, made_up_batches, make_reference, prove
from builders.plan_settings import padded_profiles
from builders.served import open_served, row_runner
from builders.standard_graph import standard_onnx
from builders.tensorrt_config import fit_repository
from builders.tensorrt_release import TensorRTOptions, write_engine
from contract.command import UsageError
from contract.files import read_json
from contract.probes import read_probes
from contract.release import RELEASE_FILE, read_manifest
from contract.tensors import CLASSIFIER, ENGINE, FEATURES, TOKENIZER
from tests.served import deployed
from tests.tiny import random_bert, tiny_config
from training.batches import Encoded
from training.bert import BertForSequenceClassification
from training.checkpoint import heldout_rows, load_checkpoint
from training.split import spread_rows

ADA: dict[str, Any] = {"module": "tensorrt_rtx", "compute_capabilities": ("8.9",)}
NAMES = ["account_age_days", "tags", "reputation", "title_words", "body_words"]
TEXTS = Encoded(
    [[2, 5, 3], [2, 9, 9, 3]], [], [False] * 2, torch.tensor([[2010.0, 0.4, 5.0, 1.0], [2014.0, 0.6, 90000.0, 5.0]])
)
ALLOWED = {"fp32": 1e-4, "bf16": 0.1}


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "logarithms"])
def model(request: pytest.FixtureRequest) -> BertForSequenceClassification:
    """Numbers as they come: years that hardly differ (of logarithms, ages), shares, amounts over five orders of magnitude."""
    found = random_bert(tiny_config(num_features=4, log_features=request.param), seed=1)
    if found.tabular is None:
        raise AssertionError("there is no tabular head")
    mean, std = ([4.5, 0.4, 6.0, 1.3], [1.5, 0.13, 2.5, 0.4]) if request.param else ([2012, 0.5, 9000, 3], [2, 0.2, 20000, 1])
    found.tabular.mean.copy_(torch.tensor(mean))
    found.tabular.std.copy_(torch.tensor(std))
    return found


def no_int8() -> Any:
    raise AssertionError("no int8 engine is written here")


@torch.inference_mode()
def answers(model: BertForSequenceClassification, inputs: tuple[npt.NDArray[Any], ...]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = model(**feed_of([torch.from_numpy(array) for array in inputs])).numpy()
    return found


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("torch", "bf16")],
)
def test_cpu_engines_score_raw_numbers_as_the_checkpoint_does(
    model: BertForSequenceClassification, tmp_path: Path, kind: str, precision: str
) -> None:
    found = find_kind(kind, precision, frozenset({"avx512_bf16"}))
    if kind == "openvino" and (reason := found.lacking(cpu_flags())):
        pytest.skip(reason)  # torch computes bf16 anywhere
    write_files(tmp_path, found, Source(model, no_int8))
    engine = open_served(tmp_path, threads=1)
    assert read_json(tmp_path / "engine.json")["features"] == 4
    for inputs in made_up_batches(model):
        assert np.abs(engine(*inputs) - answers(model, inputs)).max() < ALLOWED[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_graph_for_tensorrt_scores_in_fp32(model: BertForSequenceClassification, precision: str) -> None:
    engine = graph_engine(standard_onnx(model, Typing(precision)), threads=1)
    for inputs in made_up_batches(model):
        assert np.abs(engine(*inputs) - answers(model, inputs)).max() < ALLOWED.get(precision, 0.05)


@pytest.mark.parametrize("write", [build_onnx, standard_onnx], ids=["cpu", "tensorrt"])
def test_statistics_and_joint_head_are_initializers_by_the_names_of_their_parameters(
    model: BertForSequenceClassification, write: Any
) -> None:
    graph = write(model).graph
    names = {tensor.name for tensor in graph.initializer}
    assert {f"tabular.{name}" for name in ("mean", "std", "classifier.weight", "classifier.bias")} <= names
    assert "classifier.weight" not in names
    assert [value.name for value in graph.input][-1] == FEATURES
    assert FEATURES not in {value.name for value in write(random_bert(tiny_config())).graph.input}


def test_an_engine_that_mixes_the_numbers_of_two_texts_up_is_refused(
    model: BertForSequenceClassification, tmp_path: Path
) -> None:
    write_files(tmp_path, find_kind("onnxruntime", "fp32", frozenset()), Source(model, no_int8))
    engine = open_served(tmp_path, threads=1)
    reference = make_reference(model, TEXTS)
    parity, _ = prove(lambda ids, mask, features: engine(ids, mask, features[::-1].copy()), reference, BOUNDS["fp32"])
    assert parity.failures
    assert prove(engine, reference, BOUNDS["fp32"])[0].failures == []


def test_engines_are_timed_with_numbers_beside_the_rows(model: BertForSequenceClassification, tmp_path: Path) -> None:
    write_files(tmp_path, find_kind("onnxruntime", "fp32", frozenset()), Source(model, no_int8))
    rows = [np.arange(length, dtype=np.int32) for length in (3, 9, 5)]
    found = row_runner(open_served(tmp_path, threads=1), features=4)(rows)
    zeros = np.zeros((1, 4), np.float32)
    for row, logits in zip(rows, found, strict=True):
        wanted = answers(model, (row[None], np.ones_like(row)[None], zeros))[0]
        assert np.abs(logits - wanted).max() < 1e-4


def test_a_release_says_what_it_reads_and_its_probes_carry_it(tabular_release: Path, tabular_merged: Path) -> None:
    assert read_manifest(tabular_release).features == NAMES
    assert read_json(tabular_release / TOKENIZER / RELEASE_FILE)["features"] == NAMES
    beside = {row["text"]: row["features"] for row in heldout_rows(tabular_merged, 100)}
    probes = read_probes(tabular_release)
    assert probes.rows() == [{"text": text, "features": beside[text]} for text in probes.texts]


def test_int8_is_calibrated_and_judged_with_the_numbers_of_training(tabular_merged: Path, tmp_path: Path) -> None:
    options = Build(
        checkpoint=tabular_merged, output=tmp_path / "release", precision="int8", repository=tmp_path / "r", calibration_rows=16
    )
    build(options)
    manifest = read_manifest(tmp_path / "release")
    assert manifest.features == NAMES
    assert manifest.parity["max_abs"] < 0.5
    checkpoint = load_checkpoint(tabular_merged)
    calibration = read_calibration(checkpoint, None, rows=16)
    encoded = calibration.encode_validation(checkpoint.tokenizer, 3)
    assert encoded.features is not None
    assert encoded.features.tolist() == spread_rows(calibration.validation_features, 3)
    (tmp_path / "texts.txt").write_text("a cat\nan old tree\n")
    with pytest.raises(UsageError, match=r"holds texts alone, and .* reads numbers beside them"):
        read_calibration(checkpoint, tmp_path / "texts.txt", rows=16)


def test_a_padded_plan_is_built_and_a_packed_one_is_refused(tabular_merged: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tabular_merged)
    options: dict[str, Any] = {"precision": "fp16", "options": TensorRTOptions(**ADA)}
    record = write_engine(tmp_path, checkpoint, layout="padded", **options)
    assert record.profiles == [profile.as_json() for profile in padded_profiles([16], best_batch=8, features=5)]
    assert record.profiles[0][FEATURES] == {"min": [1, 5], "opt": [8, 5], "max": [64, 5]}
    assert record.parity["max_abs"] < record.parity["bound"]
    with pytest.raises(UsageError, match=r"--layout packed reads text alone, .* use --layout padded"):
        write_engine(tmp_path / "packed", checkpoint, layout="packed", **options)


def test_fitting_the_configs_to_a_plan_once_more_keeps_the_features(tabular_release: Path, tmp_path: Path) -> None:
    repository = deployed(tmp_path, tabular_release).path
    before = {name: parse((repository / name).read_bytes()) for name in CONFIGS}
    profiles = [profile.as_json() for profile in padded_profiles([16], best_batch=8, features=5)]
    fit_repository(repository, {"layout": "padded", "profiles": profiles})
    for name, config in before.items():
        assert parse((repository / name).read_bytes()) == config, name


def test_the_configs_take_what_the_first_release_reads(tabular_release: Path, tmp_path: Path) -> None:
    repository = deployed(tmp_path, tabular_release)
    inputs = {name: parse((repository.path / name).read_bytes())["input"] for name in CONFIGS}
    optional = {"name": FEATURES, "data_type": "TYPE_FP32", "dims": ["-1"], "optional": True}
    for name, tensors in inputs.items():
        needed = {"name": FEATURES, "data_type": "TYPE_FP32", "dims": ["5"]}
        assert tensors[-1] == (needed if name.startswith(ENGINE) else optional), name
    steps = parse((repository.path / CLASSIFIER / "config.pbtxt").read_bytes())["ensemble_scheduling"]["step"]
    assert [step["input_map"][FEATURES] for step in steps] == [FEATURES, steps[0]["output_map"][FEATURES]]


def test_the_configs_of_a_release_that_reads_text_alone_take_no_features(release: Path, tmp_path: Path) -> None:
    repository = deployed(tmp_path, release)
    assert repository.features() == 0
    assert not [path for path, text in repository.configs().items() if FEATURES.encode() in text]


def test_a_checkpoint_whose_run_names_other_features_is_refused(tabular_merged: Path) -> None:
    checkpoint = load_checkpoint(tabular_merged)
    run = checkpoint.run | {"data": checkpoint.run["data"] | {"features": NAMES[:3]}}
    with pytest.raises(UsageError, match=r"reads 5 numbers beside the text, its run\.json names 3; train it again"):
        check_served(dataclasses.replace(checkpoint, run=run))


def test_the_bench_beside_rivals_refuses_it(tabular_merged: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the rivals cannot"):
        bench(Bench(checkpoint=tabular_merged, output=tmp_path / "out.json"))
