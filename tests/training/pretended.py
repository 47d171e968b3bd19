"""A search whose trainings are pretended: their losses come out of a formula, at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from training.loop import EpochResult
from training.metrics import Metrics
from training.options import Finetune
from training.search import Search, trial_options
from training.trials import OnEpoch, Trials


def make_search(output: Path, base: Path, **options: Any) -> Search:
    """A search of three epochs a trial over the two layers of the tiny base."""
    return Search(output=output / "search", base=str(base), **({"trials": 6, "epochs": 3} | options))


def result(epoch: int, loss: float) -> EpochResult:
    """Of an epoch that took a second."""
    metrics: dict[str, Any] = dict.fromkeys(Metrics.__dataclass_fields__, 0.5)
    return EpochResult(epoch, 1.0, Metrics(**(metrics | {"loss": loss, "samples": 10})), 1.0, 10.0, True)


def loss_of(options: Finetune, epoch: int) -> float:
    """Best at a learning rate of 1e-3 and a high rank; falling with each epoch."""
    return abs(math.log10(options.learning_rate) + 3) + 1 / options.rank + 0.1 / epoch


def pretend(options: Finetune, *, on_epoch: OnEpoch) -> None:
    """In place of a training: tell the loss of each epoch at once."""
    assert not options.output.exists()
    for epoch in range(1, options.epochs + 1):
        on_epoch(result(epoch, loss_of(options, epoch)))


def run_trials(options: Search) -> Trials:
    """The trials of a pretended search, without its report, whose plots take most of the time."""
    options.output.mkdir(exist_ok=True)
    trials = Trials(options)
    trials.run(lambda chosen, output, on_epoch: pretend(trial_options(options, chosen, output), on_epoch=on_epoch))
    return trials


def parameters(options: Search) -> list[dict[str, Any]]:
    """What the trials that count have drawn, in the order of their drawing."""
    names = ("learning_rate", "rank", "alpha", "targets", "layers")
    return [{name: row[name] for name in names} for row in sorted(Trials(options).rows(), key=lambda row: row["trial"])]
