"""Which tritonserver is started, and what it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract.command import UsageError
from serving.launch import CLOSED_TO_CLIENTS, find_installation, server_arguments


def arguments(config_name: str = "cpu") -> list[str]:
    return server_arguments(
        repository=Path("/models"),
        models=["first_model", "second_model"],
        config_name=config_name,
        address="127.0.0.1",
        grpc_port=1,
        http_port=2,
        metrics_port=3,
        token="secret",
        shm_prefix="bert_1_",
    )


def test_a_tritonserver_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    found = find_installation(tmp_path)
    assert (found.binary, found.arguments, found.environment) == (binary, [], {})


def test_the_wheels_server_is_put_together_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = find_installation(tmp_path)
    placed = {path.name for path in (tmp_path / "backends" / "python").iterdir()}
    assert placed == {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}
    assert found.environment["PATH"] == f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        [str(found.binary), "--help"], env=found.environment, capture_output=True, text=True, check=False, timeout=240
    )
    for option in {argument.split("=")[0] for argument in [*found.arguments, *arguments()]}:
        assert option in done.stdout + done.stderr


def test_without_any_server_the_next_step_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as where the wheel is not installed
    with pytest.raises(UsageError, match=r"pip install nvidia-pytriton==0\.7\.0"):
        find_installation(tmp_path)


def test_everything_listens_where_it_was_told_and_nothing_else_is_open() -> None:
    told = arguments()
    for service, port in (("grpc", 1), ("http", 2), ("metrics", 3)):
        assert f"--{service}-address=127.0.0.1" in told
        assert f"--{service}-port={port}" in told
    closed = ",".join(CLOSED_TO_CLIENTS)
    assert {"model-repository", "shared-memory"} <= set(CLOSED_TO_CLIENTS)
    assert f"--http-restricted-api={closed}:triton-control=secret" in told
    assert f"--grpc-restricted-protocol={closed}:triton-control=secret" in told


def test_the_gpu_is_left_alone_by_the_cpu_engine_only() -> None:
    assert "--model-config-name=cpu" in arguments()
    assert "--allow-gpu-metrics=false" in arguments()
    assert not any("config-name" in argument or "gpu" in argument for argument in arguments(config_name=""))
