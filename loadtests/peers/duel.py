"""Two that are compared, loaded in turn, pair after pair: a machine that slows down or speeds up does so for both.

A round takes the servers one after the other, many minutes apart, while the clock of a shared machine moves by a fifth. That
makes a table, and no ratio that is judged by a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

PAIRS = 5
KEPT = ("users", "requests", "requests_per_s", "error_rate", "p50_ms", "p99_ms", "generator_cpu_share", "failure")

T = TypeVar("T")
Found = Mapping[str, Any]
Pair = dict[str, dict[str, Any]]
"""{"ours": a load's figures, "theirs": the other's}"""


def take_pairs(title: str, ours: Callable[[int], Found], theirs: Callable[[int], Found]) -> list[Pair]:
    """`PAIRS` pairs, each side called with the number of the pair; every second one begins with the other side."""
    sides = {"ours": ours, "theirs": theirs}
    pairs = []
    for number in tqdm(range(PAIRS), desc=title, unit="pairs"):
        found = {side: sides[side](number) for side in sorted(sides, reverse=number % 2 == 1)}
        pairs.append({side: {key: found[side][key] for key in KEPT if key in found[side]} for side in sides})
    return pairs


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """The same in the same order, begun elsewhere in each of `PAIRS` turns: a load comes past some hundred texts alone."""
    start = turn % PAIRS * len(items) // PAIRS
    return [*items[start:], *items[:start]]


def ratios(pairs: Iterable[Mapping[str, Found]], figure: str) -> list[float]:
    """Ours over theirs in each pair; a pair in which one of them answered nothing has none."""
    return [pair["ours"][figure] / pair["theirs"][figure] for pair in pairs if all(pair[side].get(figure) for side in pair)]


def busiest(closed: Mapping[str, Found]) -> int:
    """Requests in flight with which a server answered most, of its closed loops."""
    return int(max(closed, key=lambda users: float(closed[users]["requests_per_s"])))
