"""A tritonserver process: started in a group of its own, watched, drained and swept away without a trace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from contract.command import Failure
from serving.launch import DRAIN_TIMEOUT_S, Installation
from serving.stack import deepen_stack

_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives, not a temporary folder of ours
_CAUSE = re.compile(r"failed to load|Internal:|Invalid argument|Error:|error:|\bE\d{4} ", re.I)
_LINES_SHOWN = 12


class ServerProcess:
    """One tritonserver and its python stubs."""

    def __init__(self, installation: Installation, arguments: Sequence[str], *, log: Path, shm_prefix: str) -> None:
        self._log, self._shm_prefix = log, shm_prefix
        libc = ctypes.CDLL(None)
        deepen_stack()  # the child has it from us
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [str(installation.binary), *installation.arguments, *arguments],
                env=os.environ | installation.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we drain it
                # Should this process be killed, the server is told to drain, instead of living on unseen.
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - no threads yet
            )

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def check_alive(self) -> None:
        """Raise `Failure` with the cause out of the log when the server is gone."""
        code = self._process.poll()
        if code is not None:
            raise Failure(f"tritonserver ended with code {code}; its log {self._log} says:\n{self.cause()}")

    def cause(self) -> str:
        """The lines of the log that say what went wrong, or its last lines."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = list(dict.fromkeys(line.strip() for line in lines if _CAUSE.search(line)))
        return "\n".join("  " + line for line in (telling or lines)[-_LINES_SHOWN:])

    def wait(self, seconds: float) -> bool:
        """Whether the server ended within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    def stop(self) -> None:
        """Drain the server, kill what does not end in time, and remove its shared memory."""
        if self._process.poll() is None:
            self._process.terminate()
            if not self.wait(DRAIN_TIMEOUT_S + 5):
                self._process.kill()
                self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # stubs that outlived their server
        self._wait_for_group()
        for region in _SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)

    def _wait_for_group(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                os.killpg(self._process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.02)
