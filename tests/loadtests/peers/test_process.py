"""`loadtests.peers.process`: a server is started, waited for, weighed, and ended with its children."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

import psutil
import pytest

from contract.command import Failure
from loadtests.peers.process import free_port, running
from tests.served import wait_until

STUB = Path(__file__).with_name("stub_peer.py")


def command(port: int, mode: str = "") -> list[str]:
    return [sys.executable, str(STUB), str(port), "animal", *([mode] if mode else [])]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_is_weighed_and_ends_with_its_child(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with running(command(port), dict(os.environ), log) as server:
        seconds = server.wait_until(lambda: listens(port), timeout_s=200)
        (child,) = map(int, re.findall(r"child (\d+)", log.read_text()))
        assert seconds > 0
        assert server.memory_bytes() > psutil.Process(child).memory_full_info().pss > 0
        assert server.cpu_s() > 0
    assert wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    assert not listens(port)
    assert (server.memory_bytes(), server.cpu_s()) == (0, 0)


def test_a_server_that_ends_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match=r"the server ended with code 3:\nno such model"),
        running(command(free_port(), "crash"), dict(os.environ), tmp_path / "log") as server,
    ):
        server.wait_until(lambda: False, timeout_s=200)


def test_a_server_that_never_answers_is_a_failure(tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match="the server did not answer within 0 s"),
        running(command(free_port()), dict(os.environ), tmp_path / "log") as server,
    ):
        server.wait_until(lambda: False, timeout_s=0)
