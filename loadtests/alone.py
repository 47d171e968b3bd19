"""Requests one at a time, each beside what the server counted for it: medians, where means follow a few slow moments.

Triton's counters are read between the requests, and nobody waits for that. A request is left out when others were counted
with it, as the supervisor's own are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from contract.command import Failure
from contract.tensors import CLASSIFIER, ENGINE, TOKENIZER
from loadtests.operator import Counters, gain
from loadtests.record import Requests

REQUESTS = 300
WARMUP = 30
SETTLE_S = 0.2
"""Until the last request of the warm-up is counted."""
COUNTED_WITHIN_S = 5.0
PATH = (CLASSIFIER, TOKENIZER, ENGINE)


class Counting(Protocol):
    """A `loadtests.operator.Operator`."""

    def counters(self) -> Counters:
        """Triton's counters now."""


def measure_alone(
    send: Callable[[Sequence[str]], object], requests: Requests, server: Counting, *, count: int = REQUESTS
) -> dict[str, Any]:
    """Median milliseconds of `count` requests in all, in the steps, and beyond these; and the tokenizer's share of the engine.

    `send` returns when the answer is there, as it does to a caller who has nothing else to do: see `loadtests.target.waiting`.

    Raises:
        Failure: the server counted none of them alone.
    """
    for number in range(WARMUP):
        send(requests[number % len(requests)])
    time.sleep(SETTLE_S)
    rows, before = [], server.counters()
    for number in range(count):
        began = time.perf_counter()
        send(requests[number % len(requests)])
        total_ms = 1000 * (time.perf_counter() - began)
        after = _next_counters(server, before)
        if all(gain(before, after, model, "request_success") == 1.0 for model in PATH):
            queues_ms = sum(gain(before, after, step, "queue_duration_us") / 1000 for step in (TOKENIZER, ENGINE))
            rows.append((total_ms, *(_compute_ms(before, after, step) for step in (TOKENIZER, ENGINE)), queues_ms))
        before = after
    if not rows:
        raise Failure(f"none of {count} requests was counted by itself; is somebody else using this server?")
    total, tokenizer, engine, queues = np.array(rows).T
    beyond = total - tokenizer - engine
    parts = {"total": total, "tokenizer compute": tokenizer, "engine compute": engine, "beyond": beyond, "queues": queues}
    return {
        "requests": len(rows),
        "p50_ms": {name: float(np.median(values)) for name, values in parts.items()},
        "tokenizer_of_engine_p50": float(np.median(tokenizer / engine)),
    }


def _next_counters(server: Counting, before: Counters) -> Counters:
    """The counters when one more request has gone all the way: the server counts after it has answered."""
    deadline = time.monotonic() + COUNTED_WITHIN_S
    while time.monotonic() < deadline:
        now = server.counters()
        if all(gain(before, now, model, "request_success") >= 1.0 for model in PATH):
            return now
    raise Failure(f"a request was answered, and {COUNTED_WITHIN_S:g} s later the server has not counted it")


def _compute_ms(before: Counters, after: Counters, step: str) -> float:
    return (gain(before, after, step, "request_duration_us") - gain(before, after, step, "queue_duration_us")) / 1000
