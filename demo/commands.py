"""The project's own commands as subprocesses: shown, run, and stopped where they serve."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

SERVER_START_S = 120


class CommandError(Exception):
    """A documented command ended badly; it has printed why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def run(*words: str | Path) -> None:
    """Print one command, `python ...` or `locust ...`, and run it with this environment's Python. Raises CommandError."""
    code = subprocess.run(_show(words), check=False).returncode
    if code:
        raise CommandError(code)


def _show(words: tuple[str | Path, ...]) -> list[str]:
    arguments = [str(word) for word in words]
    print(f"\n$ {shlex.join(arguments)}", flush=True)
    return [sys.executable, *(arguments[1:] if arguments[0] == "python" else ["-m", *arguments])]


class Server:
    """`python -m serving` in the background, on free ports, for as long as the block lasts."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def __enter__(self) -> dict[str, str]:
        ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
        self._process = subprocess.Popen(_show(("python", "-m", "serving", "--repository", self._repository, *ports)))
        state = self._repository / ".server.json"
        deadline = time.monotonic() + SERVER_START_S
        while not state.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise CommandError(self._process.returncode or 1)
            time.sleep(0.1)
        urls: dict[str, str] = json.loads(state.read_text(encoding="utf-8"))
        return urls

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
