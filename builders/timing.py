"""Timing several engines on the same real texts: in turn, round after round, so that a busy moment hits all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from builders.parity import Float32, Int32

Rows = Sequence[Int32]
Run = Callable[[Rows], list[Float32]]
"""Unpadded rows of token ids -> the logits of each."""

FEWEST_ROUNDS = 2
"""After so many an engine may be given up."""

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
    hopeless: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of every call in each round; the first `warm_up` rounds are not counted.

    Args:
        hopeless: after `FEWEST_ROUNDS`, what takes this many times as long as the fastest, its best round against the other's
            worst, is left out of the rounds to come.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(-warm_up, rounds), desc="timing", unit="rounds", mininterval=0.5):
        for name in promising(seconds, hopeless) if number >= FEWEST_ROUNDS else calls:
            started = clock()
            calls[name]()
            if number >= 0:
                seconds[name].append(clock() - started)
    return seconds


def promising(seconds: Mapping[str, Sequence[float]], hopeless: float) -> list[str]:
    """The names whose best time is within `hopeless` times the worst of the fastest."""
    worst = max(seconds[fastest(seconds)])
    return [name for name, values in seconds.items() if min(values) <= hopeless * worst]


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """The name with the least median."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]))


def answer_all(run: Run, rows: Rows) -> None:
    """Answer the rows one by one, then again in batches: the work by which `--engine auto` compares engines."""
    for size in BATCH_SIZES:
        for batch in batches_of(rows, size):
            run(batch)
