"""How latencies are spread, out of the quantiles that a measurement file keeps."""

from __future__ import annotations

import numpy as np

from loadtests.charts import Plot, Series, plot
from loadtests.readers.fields import Fields

BINS = 32
PERCENTS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
LEAST_MS = 0.01


def histogram(title: str, measured: list[tuple[str, Fields]]) -> str:
    """The share of requests in each of equally wide steps of the logarithm of time, spread evenly between two quantiles.

    `measured` are (name, `quantiles_ms`).
    """
    values = {
        name: np.maximum([quantiles.number(f"{percent:g}") for percent in PERCENTS], LEAST_MS) for name, quantiles in measured
    }
    low, high = min(each[0] for each in values.values()), max(each[-1] for each in values.values())
    edges = np.geomspace(low, max(high, 1.01 * low), BINS + 1)
    series = []
    for name, each in values.items():
        shares = np.diff(np.interp(edges, each, PERCENTS, left=0, right=100))
        steps = zip(np.repeat(edges, 2)[1:-1].tolist(), np.repeat(shares, 2).tolist(), strict=True)
        series.append(Series(name, list(steps), marked=False))
    return plot(Plot(title, "ms", "% of requests in a step", series, log_x=True))
