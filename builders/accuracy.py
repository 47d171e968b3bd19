"""Task accuracy of an engine beside its checkpoint's on the same labelled rows, and whether the two differ by chance.

Shapes: R rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ALLOWED_DROP = 0.003
"""Accuracy that an engine may lose: 0.3 points."""

ENOUGH_ROWS = 5000
"""On fewer rows a drop beyond `ALLOWED_DROP` counts only where it is hardly chance: a p-value below `SIGNIFICANT`."""

SIGNIFICANT = 0.05

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Accuracy:
    """The same rows, answered twice."""

    rows: int
    checkpoint: float
    """Share of rows that the checkpoint answers rightly, in [0, 1]."""
    engine: float
    """The same of the engine."""
    flips: int
    """Rows with two different answers."""
    lost: int
    """Rows that the checkpoint answers rightly and the engine wrongly."""
    won: int
    """The opposite."""
    p_value: float
    """Exact McNemar test: how often rows that are lost or won would be so uneven by chance."""
    allowed_drop: float = ALLOWED_DROP

    @property
    def noise(self) -> float:
        """One standard deviation of the difference of the two accuracies, under the hypothesis that they are equal."""
        return math.sqrt(self.lost + self.won) / self.rows

    @property
    def failures(self) -> list[str]:
        """Empty unless the engine loses more than is allowed, and on few rows more than chance explains."""
        drop = (self.lost - self.won) / self.rows
        if drop <= self.allowed_drop or (self.rows < ENOUGH_ROWS and self.p_value >= SIGNIFICANT):
            return []
        return [
            f"accuracy falls by {100 * drop:.2f} points, from {self.checkpoint:.2%} to {self.engine:.2%} on {self.rows} rows "
            f"(allowed {100 * self.allowed_drop:.1f}, noise {100 * self.noise:.2f}, McNemar p {self.p_value:.3g})"
        ]

    def describe(self) -> str:
        """One line for people."""
        return (
            f"accuracy on {self.rows} held-out rows: engine {self.engine:.2%}, checkpoint {self.checkpoint:.2%}; "
            f"{self.flips} labels differ ({self.lost} lost, {self.won} won, McNemar p {self.p_value:.3g})"
        )


def compare_accuracy(engine: Logits, checkpoint: Logits, labels: Sequence[int]) -> Accuracy:
    """`Accuracy` of two answers [R, C] to the rows of these classes."""
    truth = np.asarray(labels)
    ours, theirs = engine.argmax(1), checkpoint.argmax(1)
    right, right_before = ours == truth, theirs == truth
    lost, won = int((right_before & ~right).sum()), int((right & ~right_before).sum())
    facts: dict[str, Any] = {"flips": int((ours != theirs).sum()), "lost": lost, "won": won}
    p_value = mcnemar(lost, won)
    return Accuracy(len(truth), float(right_before.mean()), float(right.mean()), p_value=p_value, **facts)


def mcnemar(lost: int, won: int) -> float:
    """Exact two-sided p-value: how often `lost + won` throws of a coin would be at least as uneven."""
    throws = lost + won
    tail: int = sum(math.comb(throws, number) for number in range(min(lost, won) + 1))
    return float(min(1.0, 2 * tail / 2**throws))
