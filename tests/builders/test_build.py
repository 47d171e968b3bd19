"""`python -m builders.build`: from a certified checkpoint to a release that serves, or to a refusal and no release."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import builders.build
import builders.choose
import builders.engines
from builders.build import Build, build, describe
from builders.choose import Candidate
from builders.engines import KINDS
from builders.onnx_export import build_onnx
from builders.parity import LOGIT_BOUND
from contract.command import Failure, UsageError
from contract.files import read_json, sha256_of, write_json
from contract.release import Manifest, read_manifest
from contract.tensors import ATTENTION_MASK, ENGINE, INPUT_IDS, LOGITS, TOKENIZER
from tests.tiny import random_bert
from training.bert import BertForSequenceClassification
from training.checkpoint import load_checkpoint, read_heldout

ROOT = Path(__file__).resolve().parents[2]
CERTIFICATE = "merge_certificate.json"
WEIGHTS = "model.safetensors"


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> Path:
    """A copy of the merged checkpoint to break."""
    return Path(shutil.copytree(merged, tmp_path / "checkpoint"))


def run_build(checkpoint: Path, folder: Path, **options: Any) -> Manifest:
    """Build into `folder`/release, beside a repository `folder`/repository."""
    build(Build(checkpoint=checkpoint, output=folder / "release", repository=folder / "repository", **options))
    return read_manifest(folder / "release")


def assert_nothing_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} <= {"checkpoint"}


def break_weights(checkpoint: Path, factor: float) -> None:
    """Scale the head; the certificate's hash is made to fit, so that only the engine's own proof can object."""
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["classifier.weight"] *= factor
    save_file(tensors, checkpoint / WEIGHTS, {"format": "pt"})
    certificate = read_json(checkpoint / CERTIFICATE)
    certificate["hashes"]["merged"] = sha256_of(checkpoint / WEIGHTS)
    write_json(checkpoint / CERTIFICATE, certificate)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m builders.build` as a user calls it."""
    words = [sys.executable, "-m", "builders.build", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)


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


def test_the_release_is_named_after_the_data_when_no_name_is_given(copied: Path, tmp_path: Path) -> None:
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


def test_a_checkpoint_that_was_not_merged_is_refused(finetuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no merge_certificate\.json: merge it first with python -m training\.merge"):
        run_build(finetuned, tmp_path)
    assert_nothing_written(tmp_path)


def test_a_failing_certificate_is_refused_with_its_failures(copied: Path, tmp_path: Path) -> None:
    certificate = read_json(copied / CERTIFICATE)
    write_json(copied / CERTIFICATE, certificate | {"passed": False, "failures": ["logits differ by 3"]})
    with pytest.raises(UsageError, match=r"does not pass: \['logits differ by 3'\]"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("passed", [None, "true", 1])
def test_a_certificate_passes_by_saying_true_and_nothing_else(copied: Path, tmp_path: Path, passed: Any) -> None:
    write_json(copied / CERTIFICATE, read_json(copied / CERTIFICATE) | {"passed": passed})
    with pytest.raises(UsageError, match="does not pass"):
        run_build(copied, tmp_path)


def test_weights_that_changed_since_the_merge_are_refused(copied: Path, tmp_path: Path) -> None:
    data = bytearray((copied / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copied / WEIGHTS).write_bytes(data)
    with pytest.raises(UsageError, match=r"has sha256 [0-9a-f]{64}, its certificate says [0-9a-f]{64}: merge again"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


def test_a_checkpoint_without_held_out_texts_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "heldout.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match=r"heldout\.jsonl holds no texts"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


def test_an_output_that_exists_is_left_as_it_is(merged: Path, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "mine").write_text("kept")
    with pytest.raises(UsageError, match=r"release exists already"):
        build(Build(checkpoint=merged, output=tmp_path / "release", repository=tmp_path / "repository"))
    assert [path.name for path in tmp_path.rglob("*")] == ["release", "mine"]


def test_a_wrong_engine_is_a_failure_and_leaves_no_release(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_another(model: BertForSequenceClassification) -> Any:
        return build_onnx(random_bert(model.config, seed=77))

    monkeypatch.setattr(builders.engines, "build_onnx", build_another)  # nothing makes the real one wrong
    with pytest.raises(Failure, match=r"does not equal its checkpoint; no release was written:\n  logits differ by up to"):
        run_build(merged, tmp_path)
    assert_nothing_written(tmp_path)


def test_weights_that_are_not_numbers_are_a_failure_and_leave_no_release(copied: Path, tmp_path: Path) -> None:
    break_weights(copied, float("nan"))
    with pytest.raises(Failure, match="logits differ by up to nan"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


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


def test_int8_without_its_training_texts_is_refused_and_nothing_written(copied: Path, tmp_path: Path) -> None:
    run = read_json(copied / "run.json")
    run["configuration"]["data"] = str(tmp_path / "gone.csv")
    write_json(copied / "run.json", run)
    with pytest.raises(UsageError, match="pass some by --calibration-texts FILE"):
        run_build(copied, tmp_path, precision="int8")
    assert_nothing_written(tmp_path)


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
    ("options", "said"),
    [
        ({"threads": -1}, "--threads is -1; it must be auto or at least 0"),
        ({"instances": 0}, "--instances is 0; it must be auto or at least 1"),
        ({"threads": 10**6}, "--instances 1 and --threads 1000000 are more than the "),
        ({"engine": "tensorrt", "threads": "auto"}, "--threads and --instances are of the engines for a CPU"),
    ],
    ids=["threads", "instances", "cores", "tensorrt"],
)
def test_threads_and_instances_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Build(checkpoint=tmp_path, output=tmp_path / "release", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "openvino", "precision": "fp16"}, "--engine openvino has no --precision fp16; it takes fp32"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "--engine onnxruntime has no --precision bf16; it takes fp32, int8"),
        ({"engine": "auto", "precision": "fp8"}, "--engine auto has no --precision fp8 for this machine"),
    ],
    ids=["openvino fp16", "onnxruntime bf16", "auto fp8"],
)
def test_a_precision_that_does_not_exist_is_refused(merged: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_build(merged, tmp_path, **options)
    assert_nothing_written(tmp_path)


def test_a_packed_layout_is_one_of_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layout packed is one of --engine tensorrt; openvino takes padded"):
        Build(checkpoint=tmp_path, output=tmp_path / "release", engine="openvino", layout="packed")


def test_a_quantization_report_that_exists_is_refused_before_anything_is_quantised(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--quantization-report .* exists already; name another folder"):
        Build(checkpoint=tmp_path, output=tmp_path / "release", engine="auto", quantization_report=tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "run.json"])
def test_a_half_written_checkpoint_is_refused(copied: Path, tmp_path: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(UsageError, match=f"is not a checkpoint: {name} is missing"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


def test_a_length_beyond_the_positions_is_refused(copied: Path, tmp_path: Path) -> None:
    run = read_json(copied / "run.json")
    run["configuration"]["max_length"] = 41
    write_json(copied / "run.json", run)
    with pytest.raises(UsageError, match="truncates at 41 tokens and has 40 positions"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


def test_a_label_that_the_model_does_not_know_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "heldout.jsonl").write_text('{"text": "a cat", "label": "mineral"}\n')
    with pytest.raises(UsageError, match="has the label 'mineral', which the model does not know"):
        run_build(copied, tmp_path)
    assert_nothing_written(tmp_path)


def test_a_full_disk_is_a_failure_and_leaves_nothing(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(builders.engines, "write_bytes", full)  # the disk of a test cannot be filled
    with pytest.raises(Failure, match=r"cannot write .*release: .*No space left on device"):
        run_build(merged, tmp_path)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "../a", "a\n", "naïve"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--name is {re.escape(repr(name))}; use letters"):
        Build(checkpoint=tmp_path, output=tmp_path / "release", name=name)


@pytest.mark.parametrize("count", [0, -3])
def test_fewer_than_one_probe_text_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match=f"--probe-texts is {count}; it must be at least 1"):
        Build(checkpoint=tmp_path, output=tmp_path / "release", probe_texts=count)


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


def test_the_command_ends_with_2_when_it_is_called_wrongly(finetuned: Path, tmp_path: Path) -> None:
    done = command(finetuned, "--output", tmp_path / "release", "--repository", tmp_path / "repository")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {finetuned} has no merge_certificate.json")
    assert "Traceback" not in done.stderr
    assert_nothing_written(tmp_path)


def test_the_command_ends_with_1_when_the_engine_is_not_the_checkpoints_equal(copied: Path, tmp_path: Path) -> None:
    break_weights(copied, 1e6)  # fp32 rounding alone now exceeds the bound
    done = command(copied, "--output", tmp_path / "release", "--repository", tmp_path / "repository")
    assert (done.returncode, done.stdout) == (1, "")
    assert "failed: the engine does not equal its checkpoint; no release was written:\n  logits differ by up to" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_written(tmp_path)
