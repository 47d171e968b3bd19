"""Timing several engines on the same real texts: in turn, round after round, so that a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from builders.parity import Float32, Int32

Rows = Sequence[Int32]
Run = Callable[[Rows], list[Float32]]
"""Unpadded rows of token ids -> the logits of each."""

BATCH_SIZES = (1, 32)
"""A single text, and what the server's batcher hands over under load."""


def batches_of(rows: Rows, size: int) -> list[list[Int32]]:
    """All rows, in order, `size` at a time; the last batch may be smaller."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def measure_rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    settle_s: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of every call in each round; the first `warm_up` rounds are not counted.

    Args:
        settle_s: pause before each call, in which the idle threads of another runtime stop spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(-warm_up, rounds), desc="timing", unit="rounds", mininterval=0.5):
        for name, call in calls.items():
            if settle_s:
                time.sleep(settle_s)
            started = clock()
            call()
            if number >= 0:
                seconds[name].append(clock() - started)
    return seconds


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """The name with the least median."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def answer_all(run: Run, rows: Rows) -> None:
    """Answer the rows one by one, then again in batches: the work by which `--engine auto` compares engines."""
    for size in BATCH_SIZES:
        for batch in batches_of(rows, size):
            run(batch)
