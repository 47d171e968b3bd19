"""`python -m builders.paired`: the same rows by two releases, the figures of their difference, and a run that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import builders.paired
from builders.build import Build, build
from builders.paired import Paired, compare, paired
from contract.command import UsageError
from contract.files import read_json, write_json


@pytest.fixture(scope="module")
def other(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second release of the same checkpoint."""
    folder = tmp_path_factory.mktemp("openvino")
    build(Build(checkpoint=merged, output=folder / "release", repository=folder / "repository", engine="openvino"))
    return folder / "release"


def options(merged: Path, folder: Path, *releases: Path, **more: Any) -> Paired:
    return Paired(checkpoint=merged, releases=releases, output=folder / "out" / "int8.json", work=folder / "work", **more)


def test_releases_are_compared_with_the_first_and_a_second_run_computes_nothing(
    merged: Path, release: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(builders.paired, "CHUNK", 12)
    paired(options(merged, tmp_path, release, other))
    measured = read_json(tmp_path / "out" / "int8.json")
    assert (measured["rows"], measured["first"]["engine"], list(measured["releases"])) == (
        32,
        "onnxruntime fp32",
        ["openvino fp32"],
    )
    found = measured["releases"]["openvino fp32"]
    assert found["accuracy"] == measured["first"]["accuracy"]
    assert (found["points"], found["lost"], found["won"], found["flips"], found["p_value"], found["passes"]) == (
        0,
        0,
        0,
        0,
        1,
        True,
    )
    assert 0 < found["mean_logit_error"] < 1e-4
    assert "32 held-out rows of sentences; onnxruntime fp32: accuracy " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "work").glob("*/*")) == [
        "0.npy",
        "0.npy",
        "12.npy",
        "12.npy",
        "24.npy",
        "24.npy",
    ]
    monkeypatch.setattr(builders.paired, "open_served", lambda folder: pytest.fail("an engine was opened again"))
    paired(options(merged, tmp_path, release, other))
    assert read_json(tmp_path / "out" / "int8.json")["releases"] == measured["releases"]


def test_the_figures_of_a_difference() -> None:
    first = np.array([[2, 0], [2, 0], [0.01, 0], [0, 2]], np.float32)
    logits = np.array([[2, 0], [0, 2], [0, 0.01], [0, 2]], np.float32)
    found = compare(logits, first, [0, 0, 1, 1], "int8")
    assert (found["accuracy"], found["lost"], found["won"], found["points"]) == (0.75, 1, 1, 0.0)
    assert (found["flips"], found["flips_of_ties"], found["passes"]) == (0.5, 0.25, True)
    assert found["mean_logit_error"] == pytest.approx((2 + 2 + 0.01 + 0.01) / 8)
    assert not compare(first[::-1].copy(), first, [0, 0, 0, 1], "int8")["passes"]


def test_a_release_of_another_checkpoint_or_for_a_gpu_is_refused(
    merged: Path, release: Path, second_release: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="was built out of another checkpoint"):
        paired(options(merged, tmp_path, release, second_release))
    plan = Path(shutil.copytree(release, tmp_path / "plan"))
    write_json(plan / "manifest.json", read_json(plan / "manifest.json") | {"kind": "tensorrt"})
    with pytest.raises(UsageError, match="holds a TensorRT plan; engines for a CPU are compared here"):
        paired(options(merged, tmp_path, release, plan))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_was_not_merged_is_refused(finetuned: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no merge_certificate\.json: merge it first"):
        paired(options(finetuned, tmp_path, release, tmp_path / "other"))


@pytest.mark.parametrize("names", [("a",), ("a", "a")], ids=["one", "twice"])
def test_two_releases_are_needed(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="name two folders or more, each once"):
        options(tmp_path, tmp_path, *map(Path, names))
    with pytest.raises(UsageError, match="--rows is 0; it must be at least 1"):
        options(tmp_path, tmp_path, Path("a"), Path("b"), rows=0)
