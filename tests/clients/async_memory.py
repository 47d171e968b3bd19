"""A transport for asyncio that answers out of memory, and lets a test hold answers back."""

from __future__ import annotations

import asyncio
from typing import Any

from clients.payload import Numbers, Texts
from clients.transport import Answer
from tests.clients.memory import MemoryTransport


class AsyncMemoryTransport:
    """`MemoryTransport` behind `await`; every request gives way to the others `turns` times before it is answered."""

    def __init__(self, *, turns: int = 1, gate: asyncio.Event | None = None, **options: Any) -> None:
        self.inner = MemoryTransport(**options)
        self.turns, self.gate = turns, gate
        self.running = self.most_running = self.cancelled = self.closed = 0

    async def infer(
        self, texts: Texts, *, classes: bool, timeout_s: float, request_id: str = "", features: Numbers | None = None
    ) -> Answer:
        """See `AsyncTransport.infer`; waits for `gate` when there is one."""
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for _ in range(self.turns):
                await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            return self.inner.infer(texts, classes=classes, timeout_s=timeout_s, request_id=request_id)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def ready(self) -> bool:
        """See `AsyncTransport.ready`."""
        return self.inner.ready()

    async def close(self) -> None:
        """See `AsyncTransport.close`."""
        self.closed += 1
