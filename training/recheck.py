"""Compute a checkpoint's test metrics once more, independently, and compare them with what its run.json says.

    python -m training.recheck build/finetuned

Reads CHECKPOINT/predictions.jsonl and run.json; uses scikit-learn, and none of `training.metrics`. It does not run the model:
`training.predict` does that. Exit code 1 when a figure differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from contract.command import Failure, UsageError, run_command
from contract.files import read_json, read_json_lines

TOLERANCE = 1e-6
LOSS_TOLERANCE = 1e-4  # the trainer sums it batch by batch in fp32


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """Compute a checkpoint's test metrics once more and compare them with its run.json."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder of training.finetune."""


@dataclass(frozen=True)
class Predictions:
    """The test part as it was predicted, N texts, C classes."""

    true: list[int]
    predicted: list[int]
    logits: np.ndarray[Any, np.dtype[np.float64]]
    """(N, C)"""


def recheck(folder: Path) -> None:
    """Compare every test metric; prints that they agree.

    Raises:
        UsageError: a file or figure is missing or cannot be read.
        Failure: a metric differs, or a predicted class is not that of the largest logit; each is named with both values.
    """
    path = folder / "run.json"
    try:
        run = read_json(path)
        labels, reported = list(run["data"]["labels"]), dict(run["test"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not that of a training run ({error!r}); train again") from error
    predictions = read_predictions(folder / "predictions.jsonl", labels)
    computed = compute(predictions)
    missing = [name for name in computed if not isinstance(reported.get(name), int | float)]
    if missing:
        raise UsageError(f"{path} has no test metric {', '.join(missing)}; train again")
    wrong = [
        f"{name}: run.json says {reported[name]!r}, predictions.jsonl gives {value!r}"
        for name, value in computed.items()
        if not abs(reported[name] - value) <= (LOSS_TOLERANCE if name == "loss" else TOLERANCE)
    ]
    if wrong:
        raise Failure("run.json does not agree with predictions.jsonl:\n  " + "\n  ".join(wrong))
    print(f"{len(computed)} test metrics, computed again by scikit-learn from {len(predictions.true):,} predictions, agree")


def read_predictions(path: Path, labels: list[str]) -> Predictions:
    """Read and check predictions.jsonl. Raises UsageError or Failure (see `recheck`)."""
    index = {label: number for number, label in enumerate(labels)}
    true, predicted, logits = [], [], []
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            true.append(index[row["label"]])
            predicted.append(index[row["predicted"]])
            logits.append([float(logit) for logit in row["logits"]])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} line {number} is no prediction of {labels} ({error!r}); train again") from error
        if len(logits[-1]) != len(labels):
            raise UsageError(f"{path} line {number} has {len(logits[-1])} logits for {len(labels)} classes; train again")
        if logits[-1][predicted[-1]] != max(logits[-1]):
            raise Failure(f"{path} line {number}: predicted is {row['predicted']!r}, which has not the largest logit")
    if not true:
        raise UsageError(f"{path} holds no predictions; train again")
    return Predictions(true, predicted, np.array(logits))


def compute(predictions: Predictions) -> dict[str, float]:
    """Every metric of run.json's "test", under its name there. Macro averages count classes that never occur, as 0."""
    true, predicted = predictions.true, predictions.predicted
    metrics: dict[str, float] = {
        "samples": len(true),
        "loss": float(-log_softmax(predictions.logits, axis=1)[np.arange(len(true)), true].mean()),
        "accuracy": float(accuracy_score(true, predicted)),
    }
    for average, prefix in (("macro", ""), ("weighted", "weighted_")):
        scores = precision_recall_fscore_support(
            true, predicted, labels=range(predictions.logits.shape[1]), average=average, zero_division=0.0
        )
        metrics |= {prefix + name: float(score) for name, score in zip(("precision", "recall", "f1"), scores[:3], strict=True)}
    return metrics


if __name__ == "__main__":
    run_command(lambda: recheck(tyro.cli(Recheck, prog="python -m training.recheck", description=__doc__).checkpoint))
