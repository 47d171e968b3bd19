"""Ranges of activations: what of the values seen on texts eight bits represent, at several percentiles at once.

Shapes: of the values it takes any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]
"""(least, greatest) value that is represented; 0 is always inside."""
Ranges = Mapping[str, Range]
"""By the name of what was observed."""

PERCENTILES = {"99.9": 99.9, "99.99": 99.99, "99.999": 99.999, "99.9999": 99.9999, "min-max": 100.0}
"""Name -> share of the values, in percent, that lie inside the range; half of the rest is cut off at each end."""

AS_GOOD = 1.05
"""A mean error of the logits this many times another one is as good as equal to it."""
NOTHING = 1e-3
"""And so are all below this: on few texts, or of a small model, they tell nothing."""

BINS = 16_384  # of a histogram; a percentile is exact to a bin


class RangeObserver:
    """Extremes and then a histogram between them for each name, so that no activation has to be kept.

    for title in observer.passes():
        ...  # observer.see(name, values), the same values in both passes
    observer.ranges()
    """

    def __init__(self) -> None:
        self._extremes: dict[str, Range] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._counting = False

    def passes(self) -> Iterator[str]:
        """Two rounds over all values, named for a progress bar."""
        yield "extremes"
        self._counts = {name: np.zeros(BINS, np.int64) for name in self._extremes}
        self._counting = True
        yield "histograms"

    def see(self, name: str, values: npt.NDArray[Any]) -> None:
        """Take values into account. Raises ValueError when they are not finite."""
        if self._counting:
            self._counts[name] += np.histogram(values, bins=BINS, range=self._extremes[name])[0]
        else:
            low, high = self._extremes.get(name, (np.inf, -np.inf))
            self._extremes[name] = min(low, float(values.min())), max(high, float(values.max()))

    def ranges(self) -> dict[str, dict[str, Range]]:
        """Percentile -> name -> range."""
        return {
            percentile: {name: _cut(self._counts[name], *self._extremes[name], percent) for name in self._extremes}
            for percentile, percent in PERCENTILES.items()
        }


def widest_of_the_best(errors: Mapping[str, float]) -> str:
    """Of names whose ranges widen, the last one whose error is as good as the least: texts yet to come reach further out."""
    least = min(errors.values())
    return [name for name, error in errors.items() if error <= max(AS_GOOD * least, NOTHING)][-1]


def _cut(counts: npt.NDArray[np.int64], low: float, high: float, percent: float) -> Range:
    """The part of [low, high] that holds `percent` of the counted values; 0 is always inside."""
    shares = np.cumsum(counts) / counts.sum()
    outside = (1 - percent / 100) / 2
    edges = np.linspace(low, high, BINS + 1)
    first = int(np.searchsorted(shares, outside, side="right"))
    last = int(np.searchsorted(shares, 1 - outside, side="left"))
    return min(0.0, float(edges[first])), max(0.0, float(edges[min(last + 1, BINS)]))
