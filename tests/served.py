"""Real servers for tests: `python -m serving` as a user starts it, on free ports, swept away at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from builders.repository import render_repository
from serving.publish import publish
from serving.repository import Repository
from serving.state import ServerState, read_state

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
START_TIMEOUT_S = 180  # beyond the limit of `python -m serving` itself, which names the cause
STOP_TIMEOUT_S = 120
SAID = "serving.out"  # beside the repository: what the command printed


def deployed(folder: Path, *releases: Path) -> Repository:
    """A repository in `folder` with these releases published into it, no server running."""
    render_repository(folder / "model_repository")
    repository = Repository(folder / "model_repository")
    for release in releases:
        publish(release, repository)
    return repository


def start(repository: Repository, *arguments: str, output: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    """`python -m serving` over `repository`, with its output in pipes, or both in a file."""
    command = [sys.executable, "-m", "serving", "--repository", str(repository.path), *FREE_PORTS, *arguments]
    return subprocess.Popen(command, stdout=output, stderr=output, text=True)


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> bool:
    """Whether `condition` came true in time."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def wait_until_served(process: subprocess.Popen[str], repository: Repository) -> ServerState:
    """The state of the server once it answers."""
    wait_until(lambda: read_state(repository.path) is not None or process.poll() is not None, seconds=START_TIMEOUT_S)
    state = read_state(repository.path)
    if state is None:
        said = repository.path.with_name(SAID)
        raise AssertionError(f"the server did not start: {stop(process)} {said.read_text() if said.exists() else ''}")
    return state


def stop(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Tell a server to stop and wait until it has; what it said into its pipes. One that does not end is killed."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its tritonserver ends with it
        process.communicate()
        raise


@contextmanager
def serving(repository: Repository, *arguments: str) -> Iterator[ServerState]:
    """A server for as long as the block lasts; it must end with code 0 when told to stop."""
    said = repository.path.with_name(SAID)  # no pipe, which a long run would fill
    with said.open("w") as output:
        process = start(repository, *arguments, output=output)
    try:
        yield wait_until_served(process, repository)
    finally:
        stop(process)
    assert process.returncode == 0, said.read_text()
