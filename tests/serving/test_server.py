"""`python -m serving`: starting, refusing to start, and leaving nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from contract.command import Failure
from serving.__main__ import claim_ports
from serving.state import STATE_FILE, ServerState, read_state
from tests.served import deployed, serving, start, wait_until, wait_until_served

pytestmark = pytest.mark.server


def descendants(pid: int) -> set[int]:
    """The processes below `pid`, as /proc has them."""
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            children |= {child} | descendants(child)
    return children


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def shared_memory(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"bert_{pid}_*"))  # noqa: S108 - POSIX shared memory


def test_a_stopped_server_leaves_no_process_no_shared_memory_and_no_state(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    process = start(repository)
    wait_until_served(process, repository)
    family = descendants(process.pid)
    assert len(family) >= 3  # tritonserver and two stubs
    assert shared_memory(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert [pid for pid in family if alive(pid)] == []
    assert shared_memory(process.pid) == []
    assert not (repository.path / STATE_FILE).exists()


def test_a_killed_supervisor_takes_its_server_along(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    process = start(repository)
    wait_until_served(process, repository)
    family = descendants(process.pid)
    process.kill()
    process.communicate(timeout=30)
    assert wait_until(lambda: not any(map(alive, family)))
    assert read_state(repository.path) is None  # the file is still there, its process is not
    with serving(repository):  # and so it does not stand in the way
        pass


def test_a_killed_server_is_reported_and_cleaned_up(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    process = start(repository)
    wait_until_served(process, repository)
    family = descendants(process.pid)
    (tritonserver,) = [pid for pid in family if "tritonserver" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]]
    os.kill(tritonserver, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "tritonserver ended with code -9" in errors
    assert not any(map(alive, family))
    assert shared_memory(process.pid) == []


def test_a_server_that_dies_while_loading_prints_the_cause_out_of_its_log(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    (repository.path / "bert_engine" / "1" / "model.onnx").write_bytes(b"no graph at all")
    process = start(repository)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "failed to load 'bert_engine' version 1" in errors
    assert "INVALID_PROTOBUF" in errors
    assert shared_memory(process.pid) == []


def test_a_second_server_over_one_repository_is_refused(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    with serving(repository) as state:
        process = start(repository)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2
        assert f"is served already, by process {state.pid}" in errors


def test_a_port_in_use_is_named(tmp_path: Path, release: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = start(deployed(tmp_path, release), "--http-port", str(port))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"--http-port {port} on 127.0.0.1: Address already in use" in errors


def test_free_ports_are_distinct_and_wanted_ones_are_kept() -> None:
    ports = claim_ports("127.0.0.1", {"grpc": 0, "http": 0, "metrics": 0})
    assert len(set(ports.values())) == 3
    assert claim_ports("127.0.0.1", {"grpc": ports["grpc"]}) == {"grpc": ports["grpc"]}
    with pytest.raises(Failure, match="--http-port"):
        claim_ports("127.0.0.1", {"grpc": ports["grpc"], "http": ports["grpc"]})


def test_a_repository_without_a_release_is_refused_with_the_next_step(tmp_path: Path) -> None:
    process = start(deployed(tmp_path))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "no release is published" in errors
    assert "python -m serving.releases publish" in errors


@pytest.mark.parametrize("arguments", [("--grpc-port", "70000"), ("--start-timeout-s", "0"), ("--no-such-option", "1")])
def test_a_wrong_option_is_a_usage_error(arguments: tuple[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "serving", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_the_token_is_for_its_owner_alone(server: ServerState, tmp_path: Path, release: Path) -> None:
    assert len(server.control_token) == 32
    server.write(tmp_path)
    assert (tmp_path / STATE_FILE).stat().st_mode & 0o777 == 0o600
