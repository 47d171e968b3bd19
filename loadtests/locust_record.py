"""What Locust's processes note of every request, and the result that the master makes of it.

Locust's own figures count failures as answers and round latencies; here each request is kept as it was. A worker hands its rows
to the master with each of Locust's reports. Times are those of the machines' clocks: how they differ between machines decides
only what belongs to the window, never a latency.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.record import Recording, Sample
from loadtests.result import Ceiling, Result, summarise
from loadtests.scenario import Scenario

Row = tuple[float, float, str, str]
"""When it was sent (seconds of the clock), how long it took (seconds), the release that answered, the kind of failure or ""."""

CUT_S = 5.0
"""The load goes on for so long after the window. A request that has no answer when the test ends has failed if it waited longer
than this; otherwise the end came too early for it, and it is not counted."""
CUT = "Unanswered"
REPORT_S = 3.0
"""Locust's workers report so often."""
STEADY_SHAPES = {"constant", "soak"}
UNMEASURED = Ceiling(
    requests_per_s=None, how="not measured with Locust; the CPU share of its busiest process is the only guard"
)


def _now() -> tuple[float, float]:
    return time.time(), time.process_time()


@dataclass
class LocustRecord:
    """What one process saw, and on the master what all of them told."""

    rows: list[Row] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    """The first message of each kind of failure."""
    cpu: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    """By process: the end of each of its reports' time, its seconds, and the CPU seconds used in it."""
    begin: float = 0.0
    """Of the measured window."""
    end: float = 0.0
    """Of the load, where no scenario says how long the window is."""
    _clock: tuple[float, float] = field(default_factory=_now)

    def start(self) -> None:
        """The load begins; what an earlier one left is forgotten."""
        self.rows, self.messages, self.cpu = [], {}, {}
        self.begin, self._clock = time.time(), _now()

    def begin_window(self) -> None:
        """What was sent before is warm-up."""
        self.begin = time.time()

    def note(self, sent: float, took_s: float, *, release: str = "", error: Exception | None = None) -> None:
        """A request that was answered or failed."""
        kind = type(error).__name__ if error else ""
        if error:
            self.messages.setdefault(kind, str(error))
        self.rows.append((sent, took_s, release, kind))

    def note_cut(self, sent: float, took_s: float) -> None:
        """A request that was in flight when the test ended."""
        if took_s >= CUT_S:
            self.messages.setdefault(CUT, f"no answer within {CUT_S:g} s and more, until the test ended")
            self.rows.append((sent, took_s, "", CUT))

    def take(self) -> dict[str, Any]:
        """What is new since the last call, for the master."""
        before, self._clock = self._clock, _now()
        seconds, used = (now - then for now, then in zip(self._clock, before, strict=True))
        rows, self.rows = self.rows, []
        return {"rows": rows, "messages": self.messages, "cpu": (self._clock[0], seconds, used)}

    def add(self, process: str, told: dict[str, Any]) -> None:
        """What a process told."""
        self.rows += [(sent, took_s, sys.intern(release), sys.intern(kind)) for sent, took_s, release, kind in told["rows"]]
        self.messages = told["messages"] | self.messages
        self.cpu.setdefault(process, []).append(tuple(told["cpu"]))

    def result(self, scenario: Scenario, *, name: str, machine: dict[str, Any]) -> Result:
        """The figures of the window. Raises `Failure` when nothing was answered in it."""
        samples = []
        for sent, took_s, release, kind in self.rows:
            at = sent - self.begin
            samples.append(Sample(at, at, at + took_s, release, kind))
        share = max((self._share(reports, scenario.duration_s) for reports in self.cpu.values()), default=0.0)
        recording = Recording(scenario.duration_s, samples, self.messages, share * scenario.duration_s)
        result = summarise(recording, scenario, name=name, ceiling=UNMEASURED, machine=machine)
        if scenario.load.shape not in STEADY_SHAPES:  # it is the load that changes
            result = dataclasses.replace(result, drift="")
        return result

    def _share(self, reports: list[tuple[float, float, float]], duration_s: float) -> float:
        """Of one core, that a process used in the window, as near as its reports tell."""
        last = self.begin + duration_s + REPORT_S
        within = [report for report in reports if self.begin <= report[0] <= last] or reports
        return sum(used for *_, used in within) / max(sum(seconds for _, seconds, _ in within), 1e-9)


def order_of_worker(texts: Sequence[str], index: int) -> list[str]:
    """The texts in an order of each worker's own; the first one's is that of the sample."""
    own = list(texts)
    if index > 0:
        random.Random(index).shuffle(own)
    return own


RECORD = LocustRecord()
"""Of this process; Locust's files share it."""
