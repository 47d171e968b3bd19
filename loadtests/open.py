"""Open loop: requests leave at times fixed beforehand, as those of callers who know nothing of each other do.

Latency counts from the time at which a request should have been sent. When the server stands still the requests go on
arriving and all of them wait, which is what callers feel; a generator that waits with them would not see it.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Literal

import numpy as np

from loadtests.record import Probe, Recorder, Recording, Requests, Send

MAX_IN_FLIGHT = 20_000
"""Beyond it requests fail unsent, as `TooManyInFlight`: the server is far over its limit and memory is not to be."""

Arrivals = Literal["poisson", "constant"]


def arrival_times(*, rate: float, arrivals: Arrivals, duration_s: float, seed: int) -> list[float]:
    """Seconds after the start, rising, below `duration_s`; with gaps of 1/`rate`, or exponential ones of that mean."""
    if arrivals == "constant":
        return [number / rate for number in range(int(np.ceil(duration_s * rate)))]
    generator = np.random.default_rng(seed)
    times = np.cumsum(generator.exponential(1 / rate, size=int(duration_s * rate * 1.5) + 100))
    while times[-1] < duration_s:  # hardly ever
        times = np.append(times, times[-1] + generator.exponential(1 / rate))
    return [float(time) for time in times[times < duration_s]]


async def run_open(
    send: Send,
    requests: Requests,
    *,
    rate: float,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
    warmup_s: float,
    duration_s: float,
    timeout_s: float,
    probe: Probe | None = None,
) -> Recording:
    """Send `rate` requests per second through warm-up and measured window, then wait for all answers.

    Raises what `probe` raises: then what is in flight is cancelled.
    """
    schedule = arrival_times(rate=rate, arrivals=arrivals, duration_s=warmup_s + duration_s, seed=seed)
    recorder = Recorder(send, warmup_s=warmup_s, duration_s=duration_s, timeout_s=timeout_s, probe=probe)
    loop, start = asyncio.get_running_loop(), recorder.begin - warmup_s
    in_flight: set[asyncio.Task[bool]] = set()
    try:
        async with asyncio.TaskGroup() as group:  # which cancels what is in flight when this is cancelled
            group.create_task(recorder.watch_window())
            for after, texts in zip(schedule, itertools.cycle(requests), strict=False):
                await asyncio.sleep(max(start + after - loop.time(), 0))  # also when late: tasks begun before must get a turn
                if len(in_flight) >= MAX_IN_FLIGHT:
                    said = f"{MAX_IN_FLIGHT} requests wait for their answers already"
                    recorder.refuse(start + after, "TooManyInFlight", said)
                    continue
                task = group.create_task(recorder.request(texts, start + after))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
    except ExceptionGroup as group_of_one:  # a request notes its failure, so it is the probe's
        raise group_of_one.exceptions[0] from None
    return recorder.recording
