"""`python -m builders.build`: from a certified checkpoint to a release that serves. What it refuses: test_build_refused.py."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer

import builders.build
import builders.choose
import builders.engines
from builders.build import Build, build, describe
from builders.choose import Candidate
from builders.engines import KINDS
from builders.parity import LOGIT_BOUND
from contract.command import Failure
from contract.files import read_json, sha256_of, write_json
from contract.release import read_manifest
from contract.tensors import ATTENTION_MASK, ENGINE, INPUT_IDS, LOGITS, TOKENIZER
from tests.builders.built import CERTIFICATE, WEIGHTS, command, run_build
from training.checkpoint import load_checkpoint, read_heldout


def test_the_manifest_says_what_the_release_is_made_of(merged: Path, tmp_path: Path) -> None:
    manifest = run_build(merged, tmp_path, name="tiny", probe_texts=10)
    assert re.fullmatch(r"tiny-[0-9a-f]{12}", manifest.release)
    assert manifest.labels == ["animal", "plant"]
    assert manifest.engine == "onnxruntime fp32"
    assert manifest.max_length == 16
    assert manifest.checkpoint_sha256 == sha256_of(merged / WEIGHTS) == read_json(merged / CERTIFICATE)["hashes"]["merged"]
    assert manifest.versions == {name: version(name) for name in ("torch", "onnx", "onnxruntime", "tokenizers")}
    parity = manifest.parity
    assert 0 < parity["max_abs"] <= parity["bound"] == LOGIT_BOUND
    assert (parity["label_agreement"], parity["texts"]) == (1.0, 10)
    assert [1, 1] in parity["shapes"]
    assert (manifest.kind, manifest.precision, manifest.layout) == ("onnxruntime", "fp32", "padded")
    assert manifest.runtime == {"name": "onnxruntime", "version": version("onnxruntime")}
    assert manifest.hardware["cores"] >= 1
    assert manifest.tokenizer_sha256 == sha256_of(tmp_path / "release" / TOKENIZER / "tokenizer.json")
    assert (manifest.accuracy["rows"], manifest.accuracy["flips"], manifest.accuracy["p_value"]) == (10, 0, 1.0)
    assert manifest.accuracy["engine"] == manifest.accuracy["checkpoint"]


def test_the_engine_in_the_release_gives_the_checkpoints_logits(merged: Path, tmp_path: Path) -> None:
    run_build(merged, tmp_path)
    checkpoint = load_checkpoint(merged)
    session = onnxruntime.InferenceSession(str(tmp_path / "release" / ENGINE / "model.onnx"))
    for row in list(read_heldout(merged))[:10]:
        ids = torch.tensor([checkpoint.tokenizer.encode(row["text"]).ids], dtype=torch.int32)
        inputs = {INPUT_IDS: ids.numpy(), ATTENTION_MASK: np.ones_like(ids.numpy())}
        with torch.inference_mode():
            np.testing.assert_allclose(session.run([LOGITS], inputs)[0], checkpoint.model(ids).numpy(), atol=1e-5, rtol=0)


def test_the_tokenizer_in_the_release_is_the_one_of_training_and_truncates(merged: Path, tmp_path: Path) -> None:
    run_build(merged, tmp_path)
    served = Tokenizer.from_file(str(tmp_path / "release" / TOKENIZER / "tokenizer.json"))
    assert served.to_str() == load_checkpoint(merged).tokenizer.to_str()
    assert served.truncation is not None
    assert served.truncation["max_length"] == 16
    assert served.padding is None


def test_the_release_is_named_after_the_data_when_no_name_is_given(merged: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(merged, tmp_path / "checkpoint"))
    assert re.fullmatch(r"sentences-[0-9a-f]{12}", run_build(copied, tmp_path / "a").release)
    run = read_json(copied / "run.json")
    run["data"]["name"] = "../my data (2024)"
    write_json(copied / "run.json", run)
    assert re.fullmatch(r"my-data-2024-[0-9a-f]{12}", run_build(copied, tmp_path / "b").release)


def test_the_same_checkpoint_makes_the_same_release_again(merged: Path, tmp_path: Path) -> None:
    assert run_build(merged, tmp_path / "first") == run_build(merged, tmp_path / "second")


def test_a_repository_is_rendered_once_and_then_left_alone(merged: Path, tmp_path: Path) -> None:
    run_build(merged, tmp_path)
    config = tmp_path / "repository" / "bert_engine" / "config.pbtxt"
    config.write_text("mine")
    build(Build(checkpoint=merged, output=tmp_path / "other", repository=tmp_path / "repository"))
    assert config.read_text() == "mine"


def test_openvino_is_built_proved_and_named(merged: Path, tmp_path: Path) -> None:
    manifest = run_build(merged, tmp_path, engine="openvino", probe_texts=10)
    assert (manifest.engine, manifest.runtime["name"]) == ("openvino fp32", "openvino")
    assert {f"{ENGINE}/{name}" for name in ("model.xml", "model.bin", "engine.json", "model.py")} <= set(manifest.files)
    assert 0 < manifest.parity["max_abs"] <= LOGIT_BOUND


def test_int8_is_calibrated_on_the_runs_training_texts_and_reported(merged: Path, tmp_path: Path, capsys: Any) -> None:
    report = tmp_path / "report"
    manifest = run_build(merged, tmp_path, precision="int8", calibration_rows=100, quantization_report=report)
    assert (manifest.engine, manifest.precision) == ("onnxruntime int8", "int8")
    assert LOGIT_BOUND < manifest.parity["max_abs"] <= manifest.parity["bound"]
    assert manifest.parity["flips"] <= 0.03
    assert {path.name for path in report.iterdir()} == {"quantization.json", "quantization.md", "quantization.png"}
    printed = capsys.readouterr().out
    assert "int8, calibrated on 100 texts of the training part of sentences" in printed
    assert "McNemar p" in printed.splitlines()[-3]


def test_auto_takes_the_fastest_that_passes_and_prints_the_table(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def timed(candidates: Sequence[Candidate], rows: Sequence[Any], *, features: int) -> None:
        assert (len(rows), features) == (32, 0)
        for candidate in candidates:
            candidate.seconds = [1.0 if candidate.kind.engine == "openvino" else 2.0]

    kinds = [kind for kind in KINDS if kind.engine != "torch" and kind.precision == "fp32"]
    monkeypatch.setattr(builders.build, "runnable_kinds", lambda precision, flags: kinds)
    monkeypatch.setattr(builders.choose, "time_candidates", timed)
    manifest = run_build(merged, tmp_path, engine="auto", precision="fp32")
    assert manifest.engine == "openvino fp32"
    assert f"{ENGINE}/model.onnx" not in manifest.files
    printed = capsys.readouterr().out
    assert "| onnxruntime fp32 | " in printed
    assert "openvino fp32 is the fastest that passes, found in " in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release", "repository"]


def test_auto_times_real_engines_on_held_out_texts(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = [kind for kind in KINDS if (kind.engine, kind.precision) == ("onnxruntime", "fp32")]
    monkeypatch.setattr(builders.build, "runnable_kinds", lambda precision, flags: kind)
    assert run_build(merged, tmp_path, engine="auto", probe_texts=7).engine == "onnxruntime fp32"


def test_int8_that_failed_is_not_tried_again(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise Failure("int8 loses too much")

    monkeypatch.setattr(builders.build, "quantise_model", fail)
    options = Build(checkpoint=merged, output=tmp_path / "release", engine="auto", calibration_rows=2)
    source = builders.build.source_of(options, load_checkpoint(merged))
    for _ in range(2):
        with pytest.raises(Failure, match="int8 loses too much"):
            source.int8_graph()
    assert tried == [1]


def test_threads_and_instances_that_are_given_are_stated(merged: Path, tmp_path: Path) -> None:
    manifest = run_build(merged, tmp_path, probe_texts=7, threads=1)
    assert manifest.hardware["placement"] == {"instances": 1, "threads": 1}
    assert read_json(tmp_path / "release" / ENGINE / "engine.json")["threads"] == 1


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 256),
        ({"engine": "auto", "precision": "fp32"}, 256),
        ({"engine": "auto"}, 2000),
        ({"precision": "int8"}, 2000),
        ({"engine": "tensorrt", "precision": "fp16"}, 2000),
        ({"precision": "int8", "probe_texts": 7}, 7),
    ],
    ids=["fp32", "auto of fp32", "auto", "int8", "fp16", "as told"],
)
def test_an_engine_that_rounds_is_compared_on_more_texts(tmp_path: Path, options: dict[str, Any], count: int) -> None:
    assert Build(checkpoint=tmp_path, output=tmp_path / "release", **options).compared_texts == count


def test_where_a_plan_was_proved_is_said(release: Path) -> None:
    manifest = read_manifest(release)
    assert describe(manifest).startswith("onnxruntime fp32 against checkpoint on ")
    proved = dataclasses.replace(manifest, parity=manifest.parity | {"proved_on": "the plan on NVIDIA L4"})
    assert describe(proved).startswith("onnxruntime fp32 (the plan on NVIDIA L4) against checkpoint on ")


def test_the_command_prints_what_it_measured_and_ends_with_0(merged: Path, tmp_path: Path) -> None:
    done = command(merged, "--output", tmp_path / "release", "--repository", tmp_path / "repository", "--probe-texts", "9")
    assert done.returncode == 0, done.stderr
    parity = read_manifest(tmp_path / "release").parity
    assert f"{len(parity['shapes'])} shapes and 9 held-out texts: logits within {parity['max_abs']:.2g}" in done.stdout
    assert f"rendered the repository {tmp_path / 'repository'}" in done.stdout
    assert f"wrote release {read_manifest(tmp_path / 'release').release}: {tmp_path / 'release'}" in done.stdout
