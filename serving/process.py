"""A tritonserver process: started in a group of its own, watched, drained and swept away without a trace."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from contract.command import Failure
from serving.launch import DRAIN_TIMEOUT_S, Installation
from serving.stack import deepen_stack
from serving.stubs import ZOMBIE, find_children

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives, not a temporary folder of ours
_CAUSE = re.compile(r"failed to load|Internal:|Invalid argument|Error:|error:|\bE\d{4} ", re.I)
_LINES_SHOWN = 12
_PROGRESS_COLUMNS = 6  # of what bert_engine/1/model.py writes, a row an instance; its tokens are the second

# Run by a fresh interpreter that then becomes the server: should the supervisor be killed, its server is told to drain
# (PR_SET_PDEATHSIG is 1) instead of living on unseen. Not in a `preexec_fn`, as the supervisor has threads.
_BECOME = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit('the supervisor is gone'); os.execv(sys.argv[2], sys.argv[2:])"
)


class ServerProcess:
    """One tritonserver and its python stubs. Start it from the main thread: it ends when the thread that started it does."""

    def __init__(
        self, installation: Installation, arguments: Sequence[str], *, log: Path, shm_prefix: str, environment: dict[str, str]
    ) -> None:
        self._log, self._shm_prefix = log, shm_prefix
        deepen_stack()  # the child has it from us
        with log.open("ab") as file:
            self._log_start = file.tell()
            command = [str(installation.binary), *installation.arguments, *arguments]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BECOME, str(os.getpid()), *command],
                env=os.environ | installation.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we drain it
            )

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._process.pid

    def regions(self) -> set[str]:
        """Names of its shared memory below /dev/shm; without what the python models share among themselves."""
        found = {path.name for path in SHARED_MEMORY.glob(f"{self._shm_prefix}*")}
        return {name for name in found if not name.startswith(f"{self._shm_prefix}progress_")}

    def tokens_answered(self, version: int) -> float:
        """Tokens that the engine of a version has computed, by its own count; 0 where it keeps none, as TensorRT."""
        try:
            counts = array("d", (SHARED_MEMORY / f"{self._shm_prefix}progress_{version}").read_bytes())
        except (FileNotFoundError, ValueError):  # not there, or just being made
            return 0.0
        return sum(counts[1::_PROGRESS_COLUMNS])

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    def check_alive(self) -> None:
        """Raise `Failure` with the cause out of the log when the server is gone."""
        if self.code is not None:
            raise Failure(f"tritonserver ended with code {self.code}; its log {self._log} says:\n{self.cause()}")

    def cause(self) -> str:
        """The lines of this server's log that say what went wrong, or its last lines."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").splitlines()
        telling = list(dict.fromkeys(line.strip() for line in lines if _CAUSE.search(line)))
        return "\n".join("  " + line for line in (telling or lines)[-_LINES_SHOWN:])

    def wait(self, seconds: float) -> bool:
        """Whether the server ended within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.code is not None

    def stop(self) -> None:
        """Drain the server, kill what does not end in time, and remove its shared memory."""
        if self.code is None:
            self._process.terminate()
            self._drain()
        self.kill()

    def kill(self) -> None:
        """End the server and its stubs at once, and remove their shared memory."""
        if self.code is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # stubs that outlived their server
        self._wait_for_group()
        for region in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)

    def _drain(self) -> None:
        """Wait until the server has ended, or has nothing left to end but the instances of dead stubs."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S + 5
        while time.monotonic() < deadline and not self.wait(0.1):
            children = find_children(self.pid)
            if children.dead and not children.stubs:
                return  # an instance whose stub died while it owed an answer is never given up: no use in waiting

    def _wait_for_group(self) -> None:
        """Wait until no process of the group runs. What has ended may stay a zombie for as long as init likes.

        In a container init is this process, to which the stubs fall: they would count as processes for as long as it lives.
        """
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and _group_runs(self._process.pid):
            time.sleep(0.02)
        with contextlib.suppress(ChildProcessError):  # none are ours, or none any more
            while os.waitpid(-self._process.pid, os.WNOHANG)[0]:
                pass


def _group_runs(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != ZOMBIE:
                return True
    return False
