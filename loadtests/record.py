"""What a generator notes of every request. A target is any coroutine that takes texts and says which release answered."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Send = Callable[[Sequence[str]], Awaitable[str]]
"""Sends the texts of one request and gives the id of the release that answered ("" where there is none); raises on failure."""

Requests = Sequence[Sequence[str]]
"""The texts of each request; generators begin again when they have sent the last."""

Probe = Callable[[], Any]
"""Called in a thread of its own as the measured window begins and ends: reads the server's counters."""

T = TypeVar("T")


@dataclass(slots=True)
class Sample:
    """One request; seconds since the measured window began, so those of the warm-up are negative."""

    intended_s: float
    """When it should have been sent; a closed loop intends nothing and notes the sending."""
    sent_s: float
    done_s: float
    release: str
    error: str
    """Kind of failure; "" for a good answer."""


@dataclass
class Recording:
    """Everything a generator saw, the warm-up included."""

    duration_s: float
    """Seconds of the measured window."""
    samples: list[Sample] = field(default_factory=list)
    messages: dict[str, str] = field(default_factory=dict)
    """The first message of each kind of failure."""
    cpu_s: float = 0.0
    """CPU seconds of the generator's process within the measured window."""
    probes: list[Any] = field(default_factory=list)
    """What `probe` gave at the window's begin and at its end; [] without one."""


class Recorder:
    """Sends requests and notes them."""

    def __init__(self, send: Send, *, warmup_s: float, duration_s: float, timeout_s: float, probe: Probe | None) -> None:
        self._send, self._timeout_s, self._probe = send, timeout_s, probe
        self._loop = asyncio.get_running_loop()
        self.begin = self._loop.time() + warmup_s
        """The loop's time at which the measured window begins."""
        self.end = self.begin + duration_s
        self.recording = Recording(duration_s)

    async def request(self, texts: Sequence[str], intended: float | None = None) -> bool:
        """Send one request and note it; whether it was answered. `intended` is on the loop's clock, now when left out."""
        sent = self._loop.time()
        release = error = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                release = await self._send(texts)
        except Exception as failure:  # whatever a target raises is a failed request: counted by kind, its message kept
            error = "TimedOut" if isinstance(failure, TimeoutError) else type(failure).__name__
            self.recording.messages.setdefault(error, str(failure) or f"no answer within {self._timeout_s:g} s")
        done = self._loop.time()
        times = ((sent if intended is None else intended) - self.begin, sent - self.begin, done - self.begin)
        self.recording.samples.append(Sample(*times, release, error))
        return not error

    def refuse(self, intended: float, error: str, message: str) -> None:
        """Note a request that was never sent as failed."""
        now = self._loop.time() - self.begin
        self.recording.samples.append(Sample(intended - self.begin, now, now, "", error))
        self.recording.messages.setdefault(error, message)

    async def watch_window(self) -> None:
        """Wait until the measured window is over and note what CPU this process used in it."""
        cpu_s = []
        for moment in (self.begin, self.end):
            await asyncio.sleep(moment - self._loop.time())
            cpu_s.append(time.process_time())
            if self._probe is not None:
                self.recording.probes.append(await asyncio.to_thread(self._probe))
        self.recording.cpu_s = cpu_s[1] - cpu_s[0]


def run_precisely(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a loop that wakes to the microsecond: the default one, epoll, rounds up to whole milliseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(coroutine)
