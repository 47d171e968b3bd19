"""The release log: what was done to a deployed repository and when, one JSON object a line in `releases.jsonl`.

    {"time": "2026-01-31T12:00:00+00:00", "event": "promote", "version": 3, "release": "news-0123456789ab", ...}

`promote` and `rollback` say what serves from then on, so the log is also the way back: `history`. Other events are the steps of
a publish with the seconds that they took, and `refuse` with the reason. Each line is on the disk before the next step begins.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.command import Failure, UsageError
from serving.events import append_line, read_events

LOG_FILE = "releases.jsonl"


@dataclass(frozen=True)
class ReleaseLog:
    """The log of the repository at `repository`."""

    repository: Path

    @property
    def path(self) -> Path:
        """The file; it exists once something was logged."""
        return self.repository / LOG_FILE

    def append(self, event: str, **facts: Any) -> None:
        """Write one line, on the disk when this returns. Raises `Failure` when it cannot be written."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
        try:
            append_line(self.path, line, durable=True)
        except OSError as error:
            raise Failure(f"cannot write the release log {self.path}: {error}") from error

    def events(self) -> list[dict[str, Any]]:
        """Every event, oldest first."""
        return read_events(self.path)

    def history(self, serving: int | None) -> list[int]:
        """Versions in the order in which they came to serve, those rolled back from or retired left out; last: `serving`.

        The pins are the truth: where they say something else than the log, its writer was killed between the two.
        """
        served: list[int] = []
        for event in self.events():
            version = int(event.get("version", 0))
            if event["event"] == "promote" and served[-1:] != [version]:
                served.append(version)
            elif event["event"] == "rollback" and version in served:
                del served[len(served) - served[::-1].index(version) :]
            elif event["event"] == "retire":
                served = [other for other in served if other != version]
        if serving is not None and served[-1:] != [serving]:
            served = [*(served[: served.index(serving)] if serving in served else served), serving]
        return served

    def staged_at(self, version: int) -> float:
        """When `version` became the candidate, in seconds since 1970; 0 where the log does not say."""
        times = [event["time"] for event in self.events() if (event["event"], event.get("version")) == ("stage", version)]
        return datetime.fromisoformat(times[-1]).timestamp() if times else 0.0

    def previous(self, serving: int | None) -> int | None:
        """The version that a rollback goes back to; None where there is none."""
        history = self.history(serving)
        return history[-2] if len(history) > 1 else None

    @contextlib.contextmanager
    def step(self, event: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Show and log one step with the seconds that it took; what the block puts into the given dict is logged too.

        A step that fails is logged as `refuse`, with the reason, and raises on.
        """
        print(f"{event} ...", flush=True)
        started = time.perf_counter()
        found: dict[str, Any] = {}
        try:
            yield found
        except (Failure, UsageError, OSError) as error:
            try:
                self.append("refuse", step=event, reason=str(error), **facts)
            except Failure as unlogged:
                error.add_note(str(unlogged))
            raise
        seconds = time.perf_counter() - started
        self.append(event, **facts, **found, seconds=round(seconds, 3))
        shown = "".join(f"   {name} {value}" for name, value in found.items())
        print(f"{event} done in {seconds:.2f} s{shown}", flush=True)
