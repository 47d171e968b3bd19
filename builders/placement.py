"""How an engine is laid over the cores of a CPU: so many instances of so many threads each, and which of them to take.

The rule: the most texts per second with every instance busy, of those that answer a text that is alone not much slower than
the quickest (`LONE_FACTOR`); where several are as good as equal (`TIE`), the fewest instances, as each holds the weights once
more and is one more process to look after. `builders.instances` measures.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from contract.command import UsageError

Number = int | Literal["auto"]

LONE_FACTOR = 1.5
"""So many times as long as the quickest may a placement take for a request that is alone: its median, in milliseconds."""

TIE = 0.05
"""Placements this share below the most texts per second count as equal to it: a server's own work moves as much."""

MOST_INSTANCES = 8
"""Tried: each holds the weights once more."""


RULE = (
    f"the most texts/s of those at most {LONE_FACTOR:g} times as slow as the quickest for a text that is alone; "
    f"within {TIE:.0%} the fewest instances"
)


@dataclass(frozen=True)
class Placement:
    """So many processes of so many threads each."""

    instances: int
    threads: int
    """Of each instance."""

    def __str__(self) -> str:
        return f"{self.instances} x {self.threads} threads"


@dataclass
class Trial:
    """What was measured of a placement, a value a round."""

    texts_per_s: list[float] = field(default_factory=list)
    """With every instance busy."""
    lone_ms: list[float] = field(default_factory=list)
    """Median time of one text that is alone."""


def check_numbers(instances: Number, threads: Number, cores: int) -> None:
    """Raise UsageError for numbers that cannot be, or that this machine has not enough cores for."""
    for name, number, least in (("instances", instances, 1), ("threads", threads, 0)):
        if number != "auto" and number < least:
            raise UsageError(f"--{name} is {number}; it must be auto or at least {least}")
    used = [1 if number == "auto" else max(number, 1) for number in (instances, threads)]
    if used[0] * used[1] > cores:
        raise UsageError(f"--instances {instances} and --threads {threads} are more than the {cores} cores of this machine")


def find_placements(instances: Number, threads: Number, cores: int) -> list[Placement]:
    """What is tried, rising: divisors of `cores` where a number is "auto", with products up to `cores`.

    0 threads are an equal share of the cores. Where both are free, products below half of the cores are left out: they cannot
    win.
    """
    divisors = [number for number in range(1, cores + 1) if cores % number == 0]
    counts = [number for number in divisors if number <= MOST_INSTANCES] if instances == "auto" else [instances]
    found = []
    for count in counts:
        shares = divisors if threads == "auto" else [threads or cores // count]
        found += [Placement(count, share) for share in shares if count * share <= cores]
    if instances == threads == "auto":
        found = [one for one in found if 2 * one.instances * one.threads >= cores]
    return found


def choose_placement(trials: Mapping[Placement, Trial]) -> Placement:
    """The one to take, by the rule of the module docstring."""
    allowed = [one for one in trials if slowness(one, trials) <= LONE_FACTOR]
    speed = {one: statistics.median(trials[one].texts_per_s) for one in allowed}
    equal = [one for one in allowed if speed[one] >= (1 - TIE) * max(speed.values())]
    return min(equal, key=lambda one: (one.instances, statistics.median(trials[one].lone_ms)))


def slowness(placement: Placement, trials: Mapping[Placement, Trial]) -> float:
    """How many times as long as the quickest it takes for a request that is alone."""
    lone = {one: statistics.median(trial.lone_ms) for one, trial in trials.items()}
    return lone[placement] / min(lone.values())


def table(trials: Mapping[Placement, Trial], chosen: Placement) -> str:
    """All that were measured, fastest first, as Markdown."""
    lines = ["| instances x threads | texts/s, all busy (least to greatest) | ms of a text alone | |", "|---|---|---|---|"]
    for one in sorted(trials, key=lambda one: -statistics.median(trials[one].texts_per_s)):
        slow = slowness(one, trials)
        note = "chosen" if one == chosen else f"{slow:.2f} times as slow alone" if slow > LONE_FACTOR else ""
        lines.append(f"| {one} | {_spread(trials[one].texts_per_s)} | {_spread(trials[one].lone_ms)} | {note} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def as_json(trials: Mapping[Placement, Trial], chosen: Placement) -> dict[str, Any]:
    """The choice and its figures, for the manifest; without trials the choice alone."""
    tried = [vars(one) | vars(trial) for one, trial in trials.items()]
    return vars(chosen) | ({"lone_factor": LONE_FACTOR, "tie": TIE, "tried": tried} if tried else {})
