"""Wald's sequential probability ratio test: decide as soon as the evidence allows, with both kinds of mistake bounded.

A. Wald, "Sequential Tests of Statistical Hypotheses", Annals of Mathematical Statistics 16 (1945). Of a stream of yes and no,
is the rate of yes the `usual` one or at least the `limit`? After every observation the log of the likelihood ratio is compared
with log((1 - missed) / false_alarm) and log(missed / (1 - false_alarm)): looking after every request costs no certainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from clients.canary import Outcome
from contract.command import UsageError

Verdict = Literal["good", "bad", "open"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a candidate may do, and how sure the decision has to be."""

    max_disagreement: float = 0.03
    """A candidate that disagrees with the serving release on this share of the texts, or more, is rolled back."""
    usual_disagreement: float = 0.01
    """One that disagrees on this share, or less, is good."""
    max_error_rate: float = 0.01
    """A candidate that fails on this share of requests which the serving release answers, or more, is rolled back."""
    usual_error_rate: float = 0.001
    """One that fails on this share, or less, is good."""
    max_slowdown: float = 1.5
    """A candidate that takes more than this many times as long as the serving release, in most pairs, is rolled back."""
    false_alarm: float = 0.01
    """Largest probability of rolling back a candidate that is good in every respect."""
    missed: float = 0.01
    """Largest probability of accepting a candidate that is at a limit."""

    def __post_init__(self) -> None:
        for name in ("disagreement", "error_rate"):
            usual, limit = getattr(self, f"usual_{name}"), getattr(self, f"max_{name}")
            if not 0 < usual < limit < 1:
                flags = f"--usual-{name.replace('_', '-')} is {usual} and --max-{name.replace('_', '-')} is {limit}"
                raise UsageError(f"{flags}; they must be in 0 to 1, the usual one the smaller")
        for name in ("false_alarm", "missed"):
            if not 0 < getattr(self, name) < 0.5:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0 and below 0.5")
        if not self.max_slowdown > 1:
            raise UsageError(f"--max-slowdown is {self.max_slowdown}; it must be above 1")


@dataclass(kw_only=True)
class RateTest:
    """Is the rate of yes `usual` or `limit`? The first verdict stands."""

    usual: float
    limit: float
    false_alarm: float
    missed: float
    seen: int = 0
    counted: int = 0
    """Of them yes."""
    verdict: Verdict = "open"
    log_ratio: float = 0.0
    """Log of the likelihood ratio of `limit` to `usual`."""

    def observe(self, yes: int, of: int = 1) -> None:
        """`of` more observations, `yes` of them yes, and one look at all: those of one request have no order among them."""
        self.seen += of
        self.counted += yes
        self.log_ratio += yes * math.log(self.limit / self.usual)
        self.log_ratio += (of - yes) * math.log((1 - self.limit) / (1 - self.usual))
        if self.verdict != "open":
            return
        if self.log_ratio >= math.log((1 - self.missed) / self.false_alarm):
            self.verdict = "bad"
        elif self.log_ratio <= math.log(self.missed / (1 - self.false_alarm)):
            self.verdict = "good"

    def __str__(self) -> str:
        return f"{self.counted} of {self.seen}" + (f" ({self.counted / self.seen:.2%})" if self.seen else "")


class CanaryTest:
    """Three rate tests over the outcomes of a canary: label disagreement, errors, latency.

    Latency is judged by a sign, which no distribution can upset: the candidate takes more than `max_slowdown` times as long in
    half of the pairs when that is its median slowdown, in more when it is slower still. Being slower by less is no reason:
    beside traffic a good candidate is, whose processes sleep while those of the serving release are awake. Latency can only
    speak against a candidate.
    """

    def __init__(self, limits: Limits) -> None:
        def test(usual: float, limit: float) -> RateTest:  # three tests share the false alarms
            return RateTest(usual=usual, limit=limit, false_alarm=limits.false_alarm / 3, missed=limits.missed)

        self.disagreement = test(limits.usual_disagreement, limits.max_disagreement)
        self.errors = test(limits.usual_error_rate, limits.max_error_rate)
        self.slower = test(0.45, 0.55)
        self._max_slowdown = limits.max_slowdown

    def add(self, outcome: Outcome) -> Verdict:
        """Take one outcome into account and say what is known by now."""
        self.errors.observe(outcome.error is not None)
        if outcome.error is None:
            self.disagreement.observe(outcome.disagreements, outcome.texts)
            ratio = outcome.candidate_ms / outcome.serving_ms if outcome.serving_ms else 1.0
            self.slower.observe(ratio > self._max_slowdown)
        return self.verdict

    @property
    def verdict(self) -> Verdict:
        """bad when one test says so; good when neither labels nor errors are open."""
        found = {self.disagreement.verdict, self.errors.verdict}
        if "bad" in found | {self.slower.verdict}:
            return "bad"
        return "open" if "open" in found else "good"

    def evidence(self) -> dict[str, object]:
        """What the verdict rests on."""
        return {
            "verdict": self.verdict,
            "requests": self.errors.seen,
            "texts": self.disagreement.seen,
            "disagreements": self.disagreement.counted,
            "errors": self.errors.counted,
            "slower_pairs": f"{self.slower.counted} of {self.slower.seen} beyond {self._max_slowdown:g} times",
        }
