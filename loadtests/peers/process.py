"""A server as a process of its own: started, waited for, weighed, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from contract.command import Failure

POLL_S = 0.05
STOP_TIMEOUT_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


class ServerProcess:
    """A started server and its children; what they print goes to `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path = ROOT) -> None:
        self.log = log
        self._started = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=dict(environment), cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until(self, answers: Callable[[], bool], *, timeout_s: float) -> float:
        """Seconds from the start until `answers()` came true.

        Raises:
            Failure: the process ended, or the time did; with the last lines that it printed.
        """
        while not answers():
            if self._process.poll() is not None:
                raise Failure(f"the server ended with code {self._process.returncode}:\n{self.last_lines()}")
            if time.monotonic() - self._started > timeout_s:
                raise Failure(f"the server did not answer within {timeout_s:g} s:\n{self.last_lines()}")
            time.sleep(POLL_S)
        return time.monotonic() - self._started

    def memory_bytes(self) -> int:
        """Proportional set size of the process and all below it: pages that several share count once."""
        return sum(filter(None, map(_pss, self._family())))

    def cpu_s(self) -> float:
        """CPU seconds of the process and all below it so far."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def last_lines(self, count: int = 8) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])

    def stop(self) -> None:
        """SIGTERM to the server, then SIGKILL to whatever is left of its family."""
        family = self._family()
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil compares start times: never another process of that id
                process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)

    def _family(self) -> list[psutil.Process]:
        try:
            head = psutil.Process(self._process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _pss(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error, OSError):
        return int(process.memory_full_info().pss)
    return None  # it ended while we looked


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path = ROOT) -> Iterator[ServerProcess]:
    """A server for as long as the block lasts."""
    server = ServerProcess(command, environment, log, folder)
    try:
        yield server
    finally:
        server.stop()
