"""The finished rows of an unfinished output: a folder of part files beside it, from which a killed run goes on.

Every part but the last has the same number of rows, is written under a temporary name and renamed, so the parts that are there
are whole and the next row to score is their number times that. `manifest.json` says what they were made of.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json, write_json

MANIFEST = "manifest.json"


class Parts:
    """The part files of one output."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self._suffix = folder, suffix
        self.done = 0
        while self.path(self.done).exists():
            self.done += 1

    def path(self, number: int) -> Path:
        """Where part `number`, from 0, lies."""
        return self.folder / f"part-{number:08d}{self._suffix}"

    def all(self) -> list[Path]:
        """The parts that are there, in order."""
        return [self.path(number) for number in range(self.done)]

    def next_path(self) -> Path:
        """Where the part after the last one goes."""
        return self.path(self.done)

    def remove(self) -> None:
        """They are joined, and no longer needed."""
        shutil.rmtree(self.folder)


@contextmanager
def parts_of(output: Path, manifest: dict[str, Any], *, resume: bool) -> Iterator[Parts]:
    """The parts of `output`, for this process alone.

    Raises UsageError: there are some already and `resume` is off; they were made of something else; another process makes them.
    """
    folder = output.with_name(f"{output.name}.parts")
    path = folder / MANIFEST
    if not resume or not path.exists():
        if path.exists():
            raise UsageError(f"{folder} holds an unfinished run; --resume goes on with it, or remove that folder first")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {folder}: {error}") from error
        write_json(path, manifest)
    with path.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is at work in {folder}; wait for it, or stop it first") from error
        _check_same(folder, read_json(path), manifest)
        yield Parts(folder, output.suffix)


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{name} was {json.dumps(before.get(name))} and is {json.dumps(now.get(name))}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(f"{folder} was begun differently: {'; '.join(changed)}; call it as before, or remove that folder")
