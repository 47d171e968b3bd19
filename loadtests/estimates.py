"""How far to trust what was measured: intervals, and whether the run was steady. Times are seconds within the window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

BLOCKS = 30
"""Pieces of equal time that are drawn with replacement: requests of one moment are alike, so they are drawn together."""
RESAMPLES = 400
CONFIDENCE = 0.95
DRIFT = 1.25
"""The halves of a steady run differ by less than this factor, in mean latency and in throughput."""
CHANCE = 0.01
"""A trend that chance gives more often than this is none."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval, by a bootstrap over blocks of time."""

    value: float
    low: float
    high: float


def estimate_percentile(times_s: Float64, latencies_ms: Float64, *, duration_s: float, percent: float) -> Estimate:
    """The `percent`th percentile of the latencies of requests that were due at `times_s`."""
    return _bootstrap(times_s, latencies_ms, duration_s, lambda drawn: float(np.percentile(drawn, percent)))


def estimate_rate(times_s: Float64, *, duration_s: float) -> Estimate:
    """Events per second."""
    return _bootstrap(times_s, times_s, duration_s, lambda drawn: len(drawn) / duration_s)


def between_answers(done_s: Float64, *, duration_s: float) -> tuple[Float64, float]:
    """(the answers' times since the first within the window, seconds from it to the first after the window).

    A server that computes batches answers in bursts, and a window that is cut anywhere holds one burst more or less by chance.
    Cut at answers, both ends lie where a burst begins, and the rate is right whatever the size of the bursts. `done_s` goes
    beyond the window; where nothing comes after it, it is left as it is.
    """
    within, after = done_s[(done_s >= 0) & (done_s < duration_s)], done_s[done_s >= duration_s]
    if not len(within) or not len(after):
        return within, duration_s
    first, end = float(within.min()), float(after.min())
    return within - first, end - first


def _bootstrap(times_s: Float64, values: Float64, duration_s: float, statistic: Callable[[Float64], float]) -> Estimate:
    places = _places(times_s, duration_s)
    blocks = [values[places == block] for block in range(BLOCKS)]
    generator = np.random.default_rng(0)
    draws = (np.concatenate([blocks[block] for block in generator.integers(BLOCKS, size=BLOCKS)]) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile([statistic(drawn) for drawn in draws if len(drawn)], [tail, 100 - tail]).tolist()
    return Estimate(statistic(values), low, high)


def _places(times_s: Float64, duration_s: float) -> npt.NDArray[np.int64]:
    """The block of each time."""
    return np.clip((times_s / duration_s * BLOCKS).astype(np.int64), 0, BLOCKS - 1)


def find_drift(due_s: Float64, latencies_ms: Float64, done_s: Float64, *, duration_s: float) -> str:
    """Why the run was not steady; "" when it was. `done_s` are the answers' times.

    It was not when the halves differ by more than `DRIFT` and the blocks, in their order, show a trend that is not chance
    (Kendall's tau): one slow moment is no drift, and a faint drift does not matter.
    """
    places = _places(due_s, duration_s)
    sizes = np.bincount(places, minlength=BLOCKS)
    means = np.bincount(places, weights=latencies_ms, minlength=BLOCKS)[sizes > 0] / sizes[sizes > 0]
    if len(means) < BLOCKS / 2:
        return f"only {len(means)} of {BLOCKS} pieces of the window hold an answered request"
    rates = np.bincount(_places(done_s, duration_s), minlength=BLOCKS) * BLOCKS / duration_s
    found = [_drift("latency", "ms", means), _drift("throughput", "requests/s", rates)]
    return "; ".join(filter(None, found))


def _drift(name: str, unit: str, blocks: Float64) -> str:
    half = len(blocks) // 2
    first, second = float(blocks[:half].mean()), float(blocks[-half:].mean())
    if max(first, second) <= DRIFT * min(first, second):
        return ""
    trend = stats.kendalltau(np.arange(len(blocks)), blocks)
    return f"{name} goes from {first:.4g} to {second:.4g} {unit} between the halves" if trend.pvalue < CHANCE else ""
