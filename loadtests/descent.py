"""Find the cheapest configuration that meets a bound by measuring few of them. Knows nothing of servers.

A configuration is a point: one index on each axis. From a start that is likely to meet the bound, the search moves along one
axis at a time to a better point; where no such move helps it changes two axes at once (less of one thing and more of another),
and ends where no such change helps either. On an ordered axis it goes on only while that helps; a categorical one (the
release) is tried whole. No point is measured twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Point = tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a measurement of one configuration gave."""

    feasible: bool
    """It met the bound."""
    cost: float
    """Cores used; infinite where the measurement was broken off, since the bound was missed already."""
    p99_ms: float
    miss: float = 0.0
    """How far it misses the bound, on any scale on which more is worse."""

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Smaller is better: what meets the bound by its cost, the rest by how far it misses it."""
        return (False, self.cost, self.p99_ms) if self.feasible else (True, self.miss, self.cost)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that can be chosen."""

    size: int
    ordered: bool = True
    """Neighbouring values behave alike."""


class BudgetSpentError(Exception):
    """Raised by `measure` when no further point may be measured: the best so far stands."""


class Descent:
    """A search over `axes`; `outcomes` holds what was measured."""

    def __init__(self, axes: Sequence[Axis], measure: Callable[[Point], Outcome]) -> None:
        self._axes, self._measure = axes, measure
        self.outcomes: dict[Point, Outcome] = {}

    def run(self, start: Point) -> Point | None:
        """The best point found, feasible; None when no measured point was."""
        try:
            best = start
            self.rank(best)
            while (better := self._along_axes(best) or self._across_axes(best)) is not None:
                best = better
        except BudgetSpentError:
            pass
        return self.best()

    def best(self) -> Point | None:
        """The cheapest feasible point among those measured."""
        feasible = [point for point, outcome in self.outcomes.items() if outcome.feasible]
        return min(feasible, key=lambda point: self.outcomes[point].rank) if feasible else None

    def rank(self, point: Point) -> tuple[bool, float, float]:
        """The rank of a point, measured now unless it was before. Raises BudgetSpentError."""
        if point not in self.outcomes:
            self.outcomes[point] = self._measure(point)
        return self.outcomes[point].rank

    def _along_axes(self, point: Point) -> Point | None:
        """The best point after one pass over the axes; None when it is `point` still."""
        best = point
        for number, axis in enumerate(self._axes):
            if axis.ordered:
                best = self._climb(best, number)
            else:
                best = min((_with(best, {number: value}) for value in range(axis.size)), key=self.rank)
        return best if best != point else None

    def _climb(self, point: Point, number: int) -> Point:
        """The point after which neither neighbour on this axis is better."""
        best = point
        for step in (-1, 1):
            while 0 <= best[number] + step < self._axes[number].size:
                candidate = _with(best, {number: best[number] + step})
                if self.rank(candidate) >= self.rank(best):
                    break
                best = candidate
            if best != point:
                break
        return best

    def _across_axes(self, point: Point) -> Point | None:
        """The nearest better point that differs on two axes; None when there is none."""
        return next((candidate for candidate in self._diagonals(point) if self.rank(candidate) < self.rank(point)), None)

    def _diagonals(self, point: Point) -> Iterator[Point]:
        """The points that differ on exactly two ordered axes, the nearest first."""
        ordered = [number for number, axis in enumerate(self._axes) if axis.ordered]
        moves = [
            {one: first, other: second}
            for one, other in itertools.combinations(ordered, 2)
            for first, second in itertools.product(range(self._axes[one].size), range(self._axes[other].size))
            if first != point[one] and second != point[other]
        ]
        moves.sort(key=lambda values: sum(abs(value - point[number]) for number, value in values.items()))
        return (_with(point, values) for values in moves)


def _with(point: Point, values: dict[int, int]) -> Point:
    return tuple(values.get(number, value) for number, value in enumerate(point))


def pareto(outcomes: Mapping[T, Outcome]) -> list[T]:
    """Those that no other beats in both cost and p99, cheapest first."""
    finished = [name for name, outcome in outcomes.items() if outcome.cost < math.inf]
    front: list[T] = []
    lowest = math.inf
    for name in sorted(finished, key=lambda name: (outcomes[name].cost, outcomes[name].p99_ms)):
        if outcomes[name].p99_ms < lowest:
            front.append(name)
            lowest = outcomes[name].p99_ms
    return front
