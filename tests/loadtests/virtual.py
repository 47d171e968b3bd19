"""An event loop whose clock jumps to the next timer instead of waiting for it: seconds of load in milliseconds, the same
in every run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Looks for events, and moves the clock where it would wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise AssertionError("everything waits, and no timer runs")
            self.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is the selector's."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


class Server:
    """A simulated server: so many workers, so many seconds a request, frozen from one time to another."""

    def __init__(self, *, service_s: float, workers: int = 1, frozen: tuple[float, float] = (0, 0)) -> None:
        self._service_s, self._frozen = service_s, frozen
        self._workers = asyncio.Semaphore(workers)
        self.sent: list[Sequence[str]] = []
        self.fail: Callable[[int], Exception | None] = lambda number: None

    async def send(self, texts: Sequence[str]) -> str:
        """A `loadtests.record.Send`."""
        self.sent.append(texts)
        failure = self.fail(len(self.sent) - 1)
        if failure is not None:
            raise failure
        async with self._workers:
            loop = asyncio.get_running_loop()
            begin, end = self._frozen
            if begin <= loop.time() < end:
                await asyncio.sleep(end - loop.time())
            await asyncio.sleep(self._service_s)
        return "simulated-1"
