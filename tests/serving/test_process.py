"""`serving.process` as process 1 of a container, to which the children of a server that ended are given."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.launch import Installation
from serving.process import ServerProcess
from tests.served import wait_until

CHILD_OF_ONE_THAT_ENDED = (
    "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); import time; time.sleep(60)"
)
PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def process_1() -> Iterator[None]:
    """This process inherits orphans for a while, as process 1 does."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


@pytest.mark.usefixtures("process_1")
def test_the_stubs_of_a_server_that_ended_do_not_stay_as_zombies(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    program = Installation(Path(sys.executable), ["-c", CHILD_OF_ONE_THAT_ENDED])
    server = ServerProcess(program, [], log=log, shm_prefix="bert_test_none_", environment={})
    assert wait_until(lambda: log.read_text().endswith("\n"), seconds=60)
    stub = Path("/proc") / log.read_text().split()[0]
    server.kill()
    assert not stub.exists()
