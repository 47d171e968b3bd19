"""Classification metrics out of predicted and true classes.

Macro averages give every class the same weight, whatever its size. A class that is never predicted has precision 0,
one that never occurs has recall 0, as in scikit-learn with `zero_division=0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metrics:
    """Quality on one part of the data. Shares are in [0, 1]."""

    loss: float
    accuracy: float
    precision: float
    """Macro average, as are `recall` and `f1`."""
    recall: float
    f1: float
    weighted_precision: float
    """Average weighted by the true size of each class, as are `weighted_recall` (which is the accuracy) and `weighted_f1`."""
    weighted_recall: float
    weighted_f1: float
    samples: int

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}  accuracy {self.accuracy:.2%}  precision {self.precision:.2%}  "
            f"recall {self.recall:.2%}  F1 {self.f1:.2%}  ({self.samples} texts)"
        )


def compute_metrics(true: Sequence[int], predicted: Sequence[int], *, num_classes: int, loss: float) -> Metrics:
    """Accuracy and macro precision, recall and F1. Raises ValueError when there is nothing to count."""
    if len(true) != len(predicted) or not len(true):
        raise ValueError(f"{len(true)} true and {len(predicted)} predicted classes; need equally many, and at least one")
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)  # [true, predicted]
    np.add.at(confusion, (np.asarray(true), np.asarray(predicted)), 1)
    hits = confusion.diagonal()
    precision = hits / np.maximum(confusion.sum(axis=0), 1)
    recall = hits / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    sizes = confusion.sum(axis=1) / len(true)
    return Metrics(
        loss=loss,
        accuracy=float(hits.sum() / len(true)),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        weighted_precision=float(precision @ sizes),
        weighted_recall=float(recall @ sizes),
        weighted_f1=float(f1 @ sizes),
        samples=len(true),
    )
