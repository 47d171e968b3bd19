"""`serving.stubs`: what /proc says about the children of a process, here of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.stubs import Stub, find_children, is_awake, read_status
from tests.served import wait_until


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the stub of bert_engine, version 3."""
    model = tmp_path / "bert_engine" / "3" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time\ntime.sleep(600)\n")
    command = ["/somewhere/triton_python_backend_stub", str(model), "bert_7_region", "1048576"]
    process = subprocess.Popen(command, executable=sys.executable)
    yield process
    process.kill()
    process.wait()


def found(pid: int) -> Stub | None:
    return next((stub for stub in find_children(os.getpid()).stubs if stub.pid == pid), None)


def test_a_stub_is_recognised_stopped_and_ended(child: subprocess.Popen[bytes]) -> None:
    assert wait_until(lambda: found(child.pid) is not None, seconds=60)
    stub = found(child.pid)
    assert stub is not None
    assert (stub.model, stub.version, stub.region) == ("bert_engine", 3, "bert_7_region")
    child.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: (read_status(child.pid) or ("", 0.0))[0] == "T", seconds=60)
    stopped = found(child.pid)
    assert stopped is not None and stopped.state == "T"
    dead = find_children(os.getpid()).dead
    child.kill()
    assert wait_until(lambda: find_children(os.getpid()).dead == dead + 1, seconds=60)
    assert found(child.pid) is None
    child.wait()
    assert read_status(child.pid) is None


def test_other_children_are_no_stubs() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert found(other.pid) is None
        other.communicate(b"\n")


def test_cpu_time_is_that_of_the_process() -> None:
    before = read_status(os.getpid())
    assert before is not None
    while (now := read_status(os.getpid())) and now[1] <= before[1]:
        sum(range(100_000))
    assert now is not None and now[1] <= sum(os.times()[:2]) + 0.02


def test_awake_is_who_has_a_thread_that_works_though_its_first_one_sleeps() -> None:
    code = """if True:
        import threading, time
        if input() == "w":
            threading.Thread(target=lambda: any(iter(int, 1))).start()
        time.sleep(600)
    """
    for word, awake in (("w", True), ("s", False)):
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n".encode())
            process.stdin.flush()
            assert wait_until(lambda pid=process.pid: (read_status(pid) or "?")[0] == "S")  # type: ignore[misc]
            assert wait_until(lambda pid=process.pid, awake=awake: is_awake(pid) == awake)  # type: ignore[misc]
            process.kill()
        assert not is_awake(process.pid)


def test_a_process_that_is_gone_has_no_children() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert find_children(process.pid) == type(find_children(os.getpid()))(stubs=(), dead=0)
