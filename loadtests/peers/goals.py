"""What was promised of our server against its peers, and what was found: medians over all pairs or rounds.

Ratios of throughput, and of latency with one request in flight, are those of loads in turn (`loadtests.peers.duel`).
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.peers.duel import ratios
from loadtests.result import MIN_REQUESTS

OURS = "ours"
TIMEOUT_S = 15.0
"""Of every request that is sent to a server."""
Round = Mapping[str, Any]
"""By server, as `loadtests.peers.measure.measure_round` gave it, with memory and cold start."""
Found = tuple[list[float], str]
"""(figures of a round, against whom)"""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One promise. `value` gives its figure in one round, and who it was measured against."""

    name: str
    wanted: float
    at_least: bool
    unit: str
    value: Callable[[Round, Mapping[str, bool]], Found | None]
    """None where the round lacks what it needs."""


def evaluate(rounds: Sequence[Round], best: Mapping[str, bool]) -> list[dict[str, Any]]:
    """Every goal with its median, its spread, and whether it is met; None where nothing was measured.

    Args:
        best: by peer, whether it was in its best setting, not in its default.
    """
    found = []
    for goal in GOALS:
        values = [value for each in rounds if OURS in each and (value := goal.value(each, best)) is not None]
        figures = [figure for of_round, _ in values for figure in of_round]
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


def fastest(each: Round, best: Mapping[str, bool], *, defaults: bool) -> str | None:
    """The peer that answers most requests per second, of those at their defaults or of all."""
    peaks = {name: float(found["peak_per_s"]) for name, found in _peers(each, best, defaults=defaults).items()}
    return max(peaks, key=peaks.__getitem__, default=None)


def quickest(each: Round, best: Mapping[str, bool]) -> str | None:
    """The peer at its defaults whose lone requests wait least."""
    points = {name: found["closed"]["1"] for name, found in _peers(each, best, defaults=True).items()}
    waits = {name: float(point["p50_ms"]) for name, point in points.items() if "p50_ms" in point}
    return min(waits, key=waits.__getitem__, default=None)


def rivals(each: Round, best: Mapping[str, bool]) -> list[str]:
    """The peers that ours is to be measured against in turn."""
    found = [fastest(each, best, defaults=True), fastest(each, best, defaults=False), quickest(each, best)]
    return [name for name in dict.fromkeys(found) if name is not None]


def _throughput(*, defaults: bool) -> Callable[[Round, Mapping[str, bool]], Found | None]:
    return lambda each, best: _hardest(each, best, "saturated", "requests_per_s", defaults=defaults, hardest=min)


def _alone(each: Round, best: Mapping[str, bool]) -> Found | None:
    return _hardest(each, best, "alone", "p50_ms", defaults=True, hardest=max)


def _hardest(
    each: Round, best: Mapping[str, bool], load: str, figure: str, *, defaults: bool, hardest: Callable[[list[float]], float]
) -> Found | None:
    """The ratios against the rival that does best in turn, of those at their defaults or of all; None without any.

    Which peers are rivals is found in loads one after the other, between which the clock moves; who is first of them, in turn.
    """
    against = _peers(each, best, defaults=defaults)
    found = {name: ratios(pairs[load], figure) for name, pairs in each[OURS].get("duels", {}).items() if name in against}
    medians = {name: statistics.median(values) for name, values in found.items() if values}
    if not medians:
        return None
    rival = next(name for name, median in medians.items() if median == hardest(list(medians.values())))
    return found[rival], rival


def _under_load(each: Round, best: Mapping[str, bool]) -> Found | None:
    """The peer against which we do worst."""
    found: dict[str, float] = {}
    for name, peer in _peers(each, best, defaults=False).items():
        theirs, ours = peer["open"]["0.8"], each[OURS]["at"].get(name, {})
        if (ours_ms := _p99_ms(ours)) is not None and (theirs_ms := _p99_ms(theirs)) is not None:
            found[name] = ours_ms / theirs_ms
    worst = max(found, key=found.__getitem__, default=None)
    return None if worst is None else ([found[worst]], worst)


def _p99_ms(point: Mapping[str, Any]) -> float | None:
    """Of all requests of a load: a failed one counts as one that waited for the time-out. None for too few of them."""
    if point.get("requests", 0) < MIN_REQUESTS:
        return None
    return float(point["p99_ms"]) if point["error_rate"] <= 0.01 else 1000 * TIMEOUT_S


def _of_bare_engine(each: Round, best: Mapping[str, bool]) -> Found | None:
    """Served in the cores that the generator left."""
    answered = [pair for pair in each[OURS]["bare"] if pair["ours"]["requests_per_s"]]
    left = [1 - pair["ours"]["generator_cpu_share"] / each[OURS]["cores"] for pair in answered]
    return [ratio / share for ratio, share in zip(ratios(answered, "requests_per_s"), left, strict=True)], "our bare engine"


def _beyond_compute(each: Round, best: Mapping[str, bool]) -> Found | None:
    turns = each[OURS].get("alone", [])
    return ([turn["p50_ms"]["beyond"] for turn in turns], "its own compute") if turns else None


def _memory(each: Round, best: Mapping[str, bool]) -> Found | None:
    sizes = {name: found["memory_bytes"] for name, found in _peers(each, best, defaults=False).items()}
    if not sizes:
        return None
    smallest = min(sizes, key=lambda name: float(sizes[name]))
    return [each[OURS]["memory_bytes"] / sizes[smallest]], smallest


def _tokenizer(each: Round, best: Mapping[str, bool]) -> Found | None:
    turns = each[OURS].get("alone", [])
    return ([turn["tokenizer_of_engine_p50"] for turn in turns], "our engine") if turns else None


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
    Goal(name="served throughput, share of the bare engine's", wanted=0.9, at_least=True, unit="x", value=_of_bare_engine),
    Goal(name="p50, one in flight, beyond compute", wanted=0.8, at_least=False, unit="ms", value=_beyond_compute),
    Goal(name="memory against the smallest peer", wanted=1.0, at_least=False, unit="x", value=_memory),
    Goal(
        name="tokenizer's compute, share of the engine's, p50, one in flight",
        wanted=0.1,
        at_least=False,
        unit="x",
        value=_tokenizer,
    ),
)
