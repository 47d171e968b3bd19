"""What happened to a server while it was supervised: a JSON line each, in a file and on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_BYTES = 4_000_000
"""Beyond this the file is moved to NAME.1, so that a server that fails for days fills no disk."""


def events_path(log: Path) -> Path:
    """The event file that belongs to a server's log: model_repository.log -> model_repository.events.jsonl."""
    return log.with_suffix(".events.jsonl")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Every event, oldest first; none without a file. A line that was never finished says nothing and is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [event for event in found if isinstance(event, dict)]


def append_line(path: Path, line: str, *, durable: bool = False) -> None:
    """Add a line to a file; `durable`: it is on the disk when this returns. Raises `OSError`.

    It stands by itself though a writer was killed, or the disk was full, within the line before.
    """
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        if durable:
            file.flush()
            os.fsync(file.fileno())


class EventLog:
    """Appends events to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **facts: Any) -> None:
        """Write one event with its facts, which must be JSON values. A full disk is no reason to stop serving: it is said."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        try:
            self._append(json.dumps(line, ensure_ascii=False))
        except OSError as error:
            facts = facts | {"not_in_the_file": error}
        told = " ".join(f"{name}={value}" for name, value in facts.items())
        print(f"{line['time']} {event} {told}".rstrip(), file=sys.stderr, flush=True)

    def _append(self, line: str) -> None:
        if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        append_line(self._path, line)
