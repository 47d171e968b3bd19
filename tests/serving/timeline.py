"""What clients of a long run noticed, step by step: the key `timeline` of its file, which `loadtests.report` draws.

Seconds are those of the load: pauses between its spans, in which the run looks at something else, are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

ENTRIES = 600
"""A file holds no more: a step is a second, or as many whole seconds as it takes."""

Span = tuple[float, float]
Rows = list[dict[str, Any]]


def entries(
    spans: Sequence[Span],
    answered: Sequence[tuple[float, float]],
    counted: Mapping[str, Sequence[float]],
    events: Sequence[tuple[float, str]],
) -> Rows:
    """One entry a step, each with the requests that were due in it. The last step is half to one and a half of the others.

    Args:
        spans: when there was load, one after the other, each (start, end); all times are seconds of one clock.
        answered: (when it was due, latency in seconds) of each good answer.
        counted: what else became of requests, e.g. `failed`, with the times when they were due.
        events: (when, name); several of a step are joined.
    """
    length_s = sum(end - start for start, end in spans)
    if not length_s:
        return []
    step = max(1, math.ceil(length_s / ENTRIES))
    last = max(1, round(length_s / step)) - 1

    def places(moments: Iterable[float]) -> list[int]:
        """The entry of each moment; -1 without load."""
        found = np.minimum(on_load(spans, moments) // step, last)
        return [int(place) for place in np.nan_to_num(found, nan=-1)]

    latencies: list[list[float]] = [[] for _ in range(last + 2)]  # the one after the last is without load
    for place, (_, latency) in zip(places(due for due, _ in answered), answered, strict=True):
        latencies[place].append(latency)
    counts = {name: Counter(places(moments)) for name, moments in counted.items()}
    names: list[list[str]] = [[] for _ in latencies]
    for place, (_, name) in zip(places(at for at, _ in events), events, strict=True):
        names[place].append(name)
    rows: Rows = []
    for number, found in enumerate(latencies[:-1]):
        width = step if number < last else length_s - step * last
        row: dict[str, Any] = {"t": step * number, "per_s": round(len(found) / width, 1)}
        if found:
            row |= {f"p{point}_ms": round(1000 * float(np.percentile(found, point)), 2) for point in (50, 99)}
        row |= {name: count[number] for name, count in counts.items()}
        rows.append(row | ({"event": ", ".join(names[number])} if names[number] else {}))
    return rows


def on_load(spans: Sequence[Span], moments: Iterable[float]) -> np.ndarray:  # type: ignore[type-arg]
    """Seconds of load at each moment; NaN at one without load."""
    at = np.fromiter(moments, np.float64)
    starts, ends = np.asarray(spans, np.float64).T
    before = np.concatenate([[0.0], np.cumsum(ends - starts)[:-1]])
    place = np.searchsorted(starts, at, side="right") - 1
    return np.where((place >= 0) & (at <= ends[place]), before[place] + at - starts[place], np.nan)


def longer(one: Rows, other: Rows) -> Rows:
    """The timeline that covers more: percentiles of pieces cannot be put together, so of several one is kept."""
    return max(one, other, key=lambda rows: rows[-1]["t"] if rows else -1)
