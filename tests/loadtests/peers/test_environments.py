"""`loadtests.peers.environments` and `export`: made once, made again when what they were made of has changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from contract.command import Failure
from loadtests.peers import environments
from loadtests.peers.environments import interpreter, versions
from loadtests.peers.export import export_onnx


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The commands that would have been run."""
    found: list[Sequence[str]] = []

    def call(command: Sequence[str], name: str) -> None:
        found.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)

    monkeypatch.setattr(environments, "_call", call)
    return found


def test_an_environment_is_made_once(tmp_path: Path, calls: list[Sequence[str]]) -> None:
    python = interpreter("fastapi", tmp_path)
    assert python == tmp_path / "fastapi" / "bin" / "python"
    assert [command[2] for command in calls] == ["venv", "pip"]
    assert calls[1][-1].endswith("requirements/fastapi.txt") and "--no-deps" in calls[1]
    assert interpreter("fastapi", tmp_path) == python
    assert len(calls) == 2


def test_other_requirements_or_an_unfinished_install_make_it_again(tmp_path: Path, calls: list[Sequence[str]]) -> None:
    interpreter("fastapi", tmp_path)
    (tmp_path / "fastapi" / "installed.txt").write_text("fastapi==0.1\n")
    interpreter("fastapi", tmp_path)
    assert len(calls) == 4
    (tmp_path / "fastapi" / "installed.txt").unlink()
    interpreter("fastapi", tmp_path)
    assert len(calls) == 6


def test_an_install_that_fails_is_a_failure_and_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Failure, match="the environment of fastapi cannot be made: /bin/false -m venv"):
        interpreter("fastapi", tmp_path)
    assert not (tmp_path / "fastapi" / "installed.txt").exists()


def test_versions_are_those_of_the_environment() -> None:
    assert set(versions(Path(sys.executable), ["numpy", "psutil"])) == {"numpy", "psutil"}
    with pytest.raises(Failure, match="lacks one of no-such-package"):
        versions(Path(sys.executable), ["no-such-package"])


def optimum(folder: Path, *, code: int = 0) -> Path:
    """An environment whose optimum-cli notes its arguments."""
    folder.mkdir()
    program = folder / "optimum-cli"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\necho broken >&2\nexit {code}\n')
    program.chmod(0o755)
    return folder / "python"


def test_onnx_is_exported_and_quantised_once_for_each_checkpoint(tmp_path: Path) -> None:
    python = optimum(tmp_path / "bin")
    checkpoint = tmp_path / "merged"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    for _ in range(2):
        export_onnx(checkpoint, tmp_path / "onnx", python, {"avx512_vnni"})
    first, second = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert first == f"export onnx --model {checkpoint} --task text-classification {tmp_path}/onnx/float32"
    assert second == f"onnxruntime quantize --onnx_model {tmp_path}/onnx/float32 --avx512_vnni --output {tmp_path}/onnx/int8"
    (checkpoint / "model.safetensors").write_bytes(b"others")
    export_onnx(checkpoint, tmp_path / "onnx", python, set())
    assert "--avx2" in (tmp_path / "bin" / "calls").read_text().splitlines()[-1]


def test_a_failed_export_is_a_failure_and_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(Failure, match="export onnx failed: broken"):
        export_onnx(tmp_path, tmp_path / "onnx", optimum(tmp_path / "bad", code=1), set())
    export_onnx(tmp_path, tmp_path / "onnx", optimum(tmp_path / "good"), set())
