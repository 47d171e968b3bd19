"""Closed loop: a fixed number of users, each of whom sends its next request when it has its answer.

It finds the throughput at so many requests in flight. Its latencies hide queueing: while the server is slow nothing new is
sent, so a pause of seconds costs one slow request a user and hardly shows in a percentile. Latency is `loadtests.open`'s.
"""

from __future__ import annotations

import asyncio
import itertools

from loadtests.record import Probe, Recorder, Recording, Requests, Send

REFUSED_PAUSE_S = 0.01
"""After a failed request; where all are refused at once, the generator would otherwise do nothing but fail."""


async def run_closed(
    send: Send,
    requests: Requests,
    *,
    users: int,
    warmup_s: float,
    duration_s: float,
    timeout_s: float,
    probe: Probe | None = None,
    answers: int = 0,
    longest_s: float = 0.0,
) -> Recording:
    """Keep `users` requests in flight until the measured window is over; those in flight then are waited for.

    The window is `duration_s`, and goes on until it holds so many good `answers`, to `longest_s` at most.
    """
    recorder = Recorder(send, warmup_s=warmup_s, duration_s=duration_s, timeout_s=timeout_s, probe=probe)
    texts = itertools.cycle(requests)

    async def user() -> None:
        while not recorder.over:
            if not await recorder.request(next(texts)):
                await asyncio.sleep(REFUSED_PAUSE_S)

    await asyncio.gather(recorder.watch_window(answers=answers, longest_s=longest_s), *(user() for _ in range(users)))
    return recorder.recording
