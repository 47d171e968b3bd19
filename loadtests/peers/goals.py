"""What was promised of our server against its peers, and what was found: ratios within a round, medians over the rounds."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS = "ours"
Round = Mapping[str, Any]
"""By server, as `loadtests.peers.measure.measure_round` gave it, with memory and cold start."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One promise. `value` gives its figure in one round, and who it was measured against."""

    name: str
    wanted: float
    at_least: bool
    unit: str
    value: Callable[[Round, Mapping[str, bool]], tuple[float, str] | None]
    """(figure, against whom); None where the round lacks what it needs."""


def evaluate(rounds: Sequence[Round], best: Mapping[str, bool]) -> list[dict[str, Any]]:
    """Every goal with its median, its spread, and whether it is met; None where nothing was measured.

    Args:
        best: by peer, whether it was in its best setting, not in its default.
    """
    found = []
    for goal in GOALS:
        values = [value for each in rounds if OURS in each and (value := goal.value(each, best)) is not None]
        figures = [figure for figure, _ in values]
        middle = statistics.median(figures) if figures else None
        meets = operator.ge if goal.at_least else operator.le
        found.append(
            {
                "goal": goal.name,
                "wanted": goal.wanted,
                "at_least": goal.at_least,
                "unit": goal.unit,
                "median": middle,
                "min": min(figures, default=None),
                "max": max(figures, default=None),
                "against": sorted({against for _, against in values}),
                "met": None if middle is None else bool(meets(middle, goal.wanted)),
            }
        )
    return found


def _peers(each: Round, best: Mapping[str, bool], *, defaults: bool) -> dict[str, Any]:
    return {name: found for name, found in each.items() if name != OURS and not (defaults and best[name])}


def _throughput(*, defaults: bool) -> Callable[[Round, Mapping[str, bool]], tuple[float, str] | None]:
    def value(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
        peaks = {name: found["peak_per_s"] for name, found in _peers(each, best, defaults=defaults).items()}
        if not peaks:
            return None
        fastest = max(peaks, key=lambda name: float(peaks[name]))
        return each[OURS]["peak_per_s"] / peaks[fastest], fastest

    return value


def _alone(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
    points = {name: found["closed"]["1"] for name, found in _peers(each, best, defaults=True).items()}
    waits = {name: point["p50_ms"] for name, point in points.items() if "p50_ms" in point}
    if not waits or "p50_ms" not in each[OURS]["closed"]["1"]:
        return None
    quickest = min(waits, key=lambda name: float(waits[name]))
    return each[OURS]["closed"]["1"]["p50_ms"] / waits[quickest], quickest


def _under_load(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
    """The peer against which we do worst."""
    ratios = {}
    for name, found in _peers(each, best, defaults=False).items():
        theirs, ours = found["open"]["0.8"], each[OURS]["at"].get(name, {})
        if "p99_ms" in theirs and "p99_ms" in ours:
            ratios[name] = ours["p99_ms"] / theirs["p99_ms"]
    worst = max(ratios, key=lambda name: float(ratios[name]), default=None)
    return None if worst is None else (ratios[worst], worst)


def _of_bare_engine(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
    ours = each[OURS]
    point = max([*ours["closed"].values(), ours["overload"]], key=lambda found: float(found["requests_per_s"]))
    left = 1 - point["generator_cpu_share"] / ours["cores"]
    return point["requests_per_s"] / (ours["bare_per_s"] * left), "our bare engine"


def _beyond_compute(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
    alone = each[OURS].get("alone")
    return None if alone is None else (alone["p50_ms"]["beyond"], "its own compute")


def _memory(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
    sizes = {name: found["memory_bytes"] for name, found in _peers(each, best, defaults=False).items()}
    if not sizes:
        return None
    smallest = min(sizes, key=lambda name: float(sizes[name]))
    return each[OURS]["memory_bytes"] / sizes[smallest], smallest


def _tokenizer(each: Round, best: Mapping[str, bool]) -> tuple[float, str] | None:
    alone = each[OURS].get("alone")
    return None if alone is None else (alone["tokenizer_of_engine_p50"], "our engine")


GOALS = (
    Goal(
        name="throughput against the best peer at its default",
        wanted=3.0,
        at_least=True,
        unit="x",
        value=_throughput(defaults=True),
    ),
    Goal(
        name="throughput against the best peer at its best",
        wanted=1.3,
        at_least=True,
        unit="x",
        value=_throughput(defaults=False),
    ),
    Goal(name="p50, one in flight, against the best peer at its default", wanted=0.5, at_least=False, unit="x", value=_alone),
    Goal(name="p99 at 80 % of the peer's peak, the hardest peer", wanted=0.5, at_least=False, unit="x", value=_under_load),
    Goal(name="served throughput of the bare engine's", wanted=0.9, at_least=True, unit="x", value=_of_bare_engine),
    Goal(name="p50, one in flight, beyond compute", wanted=0.8, at_least=False, unit="ms", value=_beyond_compute),
    Goal(name="memory against the smallest peer", wanted=1.0, at_least=False, unit="x", value=_memory),
    Goal(name="tokenizer's time of the engine's, p50, one in flight", wanted=0.1, at_least=False, unit="x", value=_tokenizer),
)
