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

LOOK_S = 0.1
"""Between two looks at whether there are answers enough."""

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
        self.over = False
        """Whether the measured window has ended."""
        self.begin = self._loop.time() + warmup_s
        """The loop's time at which the measured window begins."""
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

    async def watch_window(self, *, answers: int = 0, longest_s: float = 0.0) -> None:
        """Wait until the measured window is over and note what CPU this process used in it.

        The window grows until so many good answers came in it, or to `longest_s`.
        """
        await asyncio.sleep(self.begin - self._loop.time())
        began_s = time.process_time()
        await self._take_probe()
        await asyncio.sleep(self.begin + self.recording.duration_s - self._loop.time())
        while self._loop.time() < self.begin + longest_s and self._answers() < answers:
            await asyncio.sleep(LOOK_S)
            self.recording.duration_s = self._loop.time() - self.begin
        self.over = True
        self.recording.cpu_s = time.process_time() - began_s
        await self._take_probe()

    async def _take_probe(self) -> None:
        if self._probe is not None:
            self.recording.probes.append(await asyncio.to_thread(self._probe))

    def _answers(self) -> int:
        """Good ones within the window so far."""
        return sum(sample.done_s >= 0 and not sample.error for sample in self.recording.samples)


def run_precisely(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a loop that wakes to the microsecond: the default one, epoll, rounds up to whole milliseconds."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(coroutine)
