"""What `python -m builders.build` refuses, and leaves no release of: wrong calls, checkpoints, wrong engines."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import builders.build
import builders.choose
import builders.engines
from builders.build import Build, build
from builders.onnx_export import build_onnx
from contract.command import Failure, UsageError
from contract.files import read_json, write_json
from tests.builders.built import CERTIFICATE, WEIGHTS, assert_nothing_written, break_weights, command, run_build
from tests.tiny import random_bert
from training.bert import BertForSequenceClassification


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> Path:
    """A copy of the merged checkpoint to break."""
    return Path(shutil.copytree(merged, tmp_path / "checkpoint"))


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


def test_int8_without_its_training_texts_is_refused_and_nothing_written(copied: Path, tmp_path: Path) -> None:
    run = read_json(copied / "run.json")
    run["configuration"]["data"] = str(tmp_path / "gone.csv")
    write_json(copied / "run.json", run)
    with pytest.raises(UsageError, match="pass some by --calibration-texts FILE"):
        run_build(copied, tmp_path, precision="int8")
    assert_nothing_written(tmp_path)


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
