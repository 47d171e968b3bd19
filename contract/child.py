"""A process of ours that obeys: a line of JSON in, a line of JSON out, and its last words when it ends."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from contract.command import Failure


class Child:
    """Used in a `with`, at whose end it is killed."""

    def __init__(self, command: Sequence[str], ended: str, *, cwd: str | None = None) -> None:
        """Start it; `ended` says that it ended, with {code} in it."""
        self._ended, self._errors = ended, tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(command, text=True, cwd=cwd, **pipes)

    def ask(self, order: Any) -> None:
        """Give an order."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BrokenPipeError):  # it ended: `answer` says how
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def answer(self) -> Any:
        """The answer to the oldest order that has none yet. Raises Failure when the process ended instead."""
        assert self._process.stdout is not None  # noqa: S101 - likewise
        if line := self._process.stdout.readline():
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise Failure(f"{self._ended.format(code=code)}: {' '.join(said[-1:])}")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()
