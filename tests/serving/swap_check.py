"""What a finished run of `tests.serving.chaos_swap` must have kept, and what it missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

ROLLBACK_S = 2.0
FLIP_RATIO, LOADING_RATIO = 1.25, 5.0
GROWTH = {"pss_mb": 0.05, "sequential_p50_ms": 0.10}
"""Share of the median that memory and the cost of a request may grow by over the longest piece; what noise explains is free."""


def trend(values: Sequence[float], lengths: Sequence[int]) -> tuple[float, float, float]:
    """(growth over the longest piece, its standard error, what chance makes of none in one run of 40 or fewer).

    By one slope through all pieces, each from a level of its own.

    Every piece has a server of its own, so only within pieces can anything pile up; the first tenth of each fills caches.
    """
    xs, ys, start, pieces = [], [], 0, 0
    for length in lengths:
        part = np.asarray(values[start : start + length], np.float64)[math.ceil(length / 10) :]
        start += length
        if len(part) > 1:
            xs.append(np.arange(len(part)) - (len(part) - 1) / 2)
            ys.append(part - part.mean())
            pieces += 1
    if not xs or (free := sum(map(len, xs)) - pieces - 1) < 1:
        return 0.0, math.inf, math.inf
    x, y = np.concatenate(xs), np.concatenate(ys)
    slope = x @ y / (x @ x)
    error = math.sqrt(((y - slope * x) ** 2).sum() / free / (x @ x))
    span = max(map(len, xs)) - 1
    return float(slope * span), float(error * span), float(student.ppf(0.975, free) * error * span)


def growths(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Trend of memory and of the cost of a request, where there are enough looks to tell one."""
    trends = {name: trend(found[name], found["looks"]) for name in GROWTH if found[name]}
    return {
        name: {"growth": round(grown, 3), "standard_error": round(error, 3), "chance": round(chance, 3)}
        for name, (grown, error, chance) in trends.items()
        if math.isfinite(error)
    }


def failures(report: dict[str, Any]) -> list[str]:
    """What a run missed; empty when it kept everything."""
    missed = list(report["wrong"])
    missed += [f"{report[kind]} requests {kind}" for kind in ("failed", "mixed") if report[kind]]
    refused = report["counts"].get("refused", 0)
    if refused != report["bad_releases"]:
        missed.append(f"{refused} of {report['bad_releases']} bad releases refused")
    limits = {"slowest_rollback_s": ROLLBACK_S, "flip_ratio": FLIP_RATIO, "loading_ratio": LOADING_RATIO}
    missed += [
        f"{name} is {report[name]:.3g}, allowed {limit:g}" for name, limit in limits.items() if report.get(name, 0) > limit
    ]
    for name, found in report["growth"].items():
        allowed = GROWTH[name] * float(np.median(report[name]))
        if found["growth"] > max(allowed, found["chance"]):
            missed.append(f"{name} grew by {found['growth']:.3g} over a piece, allowed {allowed:.3g}")
    return missed
