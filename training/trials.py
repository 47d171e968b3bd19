"""The trials of a search, kept in Optuna's journal file and shared by every process that works on the same folder.

    OUTPUT/trials.log       the journal
    OUTPUT/workers/ID/      one for each process at work: its lock, which dies with it, and the run of its trial

A trial whose process was killed counts as interrupted: it is closed as failed and made up for. The command is
`training.search`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from contract.command import Failure
from training.loop import EpochResult

if TYPE_CHECKING:  # that command imports this module, and only when it runs: Optuna may not be installed
    from training.search import Search

OnEpoch = Callable[[EpochResult], None]
RunTrial = Callable[[dict[str, Any], Path, OnEpoch], None]

JOURNAL_FILE = "trials.log"
TRIALS_BEFORE_PRUNING = 4


class _Enough(Exception):  # noqa: N818 - no error: the trial has told all that is asked of it
    """Ends a trial after its last validation, before the test part would be evaluated and a checkpoint written."""


class Trials:
    """The trials of `options.output`, those of earlier calls and of other processes included."""

    def __init__(self, options: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._options = options
        journal = options.output / JOURNAL_FILE
        _mend(journal)
        pruner: BasePruner = MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING) if options.prune else NopPruner()
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="search",
            direction="minimize",
            pruner=pruner,
            load_if_exists=True,
        )

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that went to their end, best first."""
        return sorted(self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=lambda trial: trial.values)

    def run(self, run_trial: RunTrial) -> None:
        """Run trials until there are as many as asked for.

        `run_trial` gets the drawn parameters, a folder to write and a function to call after each validation, which ends
        the trial by raising. A `Failure` is that trial's own; what else it raises ends the search.
        """
        with _worker(self._options.output) as worker:
            while (trial := self._next(worker)) is not None:
                self._run_one(trial, worker, run_trial)

    def _next(self, worker: Path) -> Trial | None:
        """A new trial with its parameters drawn, or None when there are enough; one process at a time."""
        with _locked(self._options.output / "search.lock"):
            _remove_dead_workers(worker.parent)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if not (worker.parent / trial.user_attrs.get("worker", "-")).exists():
                    self.study.tell(trial.number, state=TrialState.FAIL)
            counted = [trial for trial in self.study.get_trials(deepcopy=False) if _counts(trial)]
            if len(counted) >= self._options.trials:
                return None
            # Each trial has a seed of its own, and one in the place of an interrupted trial has that one's: so a search
            # that was interrupted draws as one that was not, and processes that share one never draw the same.
            taken = {trial.user_attrs.get("draw") for trial in counted}
            draw = next(number for number in itertools.count() if number not in taken)
            self.study.sampler = TPESampler(seed=(self._options.seed * 1_000_003 + draw) % 2**32)
            new = self.study.ask()
            new.set_user_attr("worker", worker.name)
            new.set_user_attr("draw", draw)
            self._draw(new)
            return new

    def _draw(self, trial: Trial) -> None:
        low, high = self._options.learning_rates
        trial.suggest_float("learning_rate", low, high, log=True)
        trial.suggest_categorical("rank", self._options.ranks)
        trial.suggest_categorical("alpha", self._options.alphas)
        trial.suggest_categorical("targets", self._options.target_sets)
        trial.suggest_categorical("layers", self._options.layer_sets)

    def _run_one(self, trial: Trial, worker: Path, run_trial: RunTrial) -> None:
        print(
            f"\ntrial {trial.number}: {'  '.join(f'{name} {show(value)}' for name, value in trial.params.items())}", flush=True
        )
        epochs: list[dict[str, float]] = []
        folder = worker / f"trial-{trial.number}"
        try:
            with contextlib.suppress(_Enough):
                run_trial(trial.params, folder / "checkpoint", lambda result: self._on_epoch(trial, epochs, result))
            self.study.tell(trial, min(epoch["loss"] for epoch in epochs))
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except Failure as error:
            trial.set_user_attr("reason", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._print(trial)

    def _on_epoch(self, trial: Trial, epochs: list[dict[str, float]], result: EpochResult) -> None:
        epochs.append(_epoch(result))
        trial.set_user_attr("epochs", epochs)
        trial.report(result.validation.loss, result.epoch)
        if result.epoch == self._options.epochs:
            raise _Enough
        if trial.should_prune():
            raise optuna.TrialPruned

    def _print(self, trial: Trial) -> None:
        row = next(row for row in self.rows() if row["trial"] == trial.number)
        counted = sum(map(_counts, self.study.get_trials(deepcopy=False)))
        words = [f"trial {trial.number} {row['state']}"]
        if row["loss"] is not None:
            words.append(f"validation loss {row['loss']:.4f}")
        if row["reason"]:
            words.append(row["reason"])
        if self.finished:
            words.append(f"best so far {self.finished[0].value:.4f} of trial {self.finished[0].number}")
        print(f"{', '.join(words)} ({counted} of {self._options.trials} trials)", flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """Every trial that counts, as a row: finished, pruned, running, failed, and in each the lowest loss first."""
        rows = [_row(trial) for trial in self.study.get_trials(deepcopy=False) if _counts(trial)]
        order = {state: place for place, state in enumerate(("finished", "pruned", "running", "failed"))}
        return sorted(rows, key=lambda row: (order[row["state"]], row["loss"] is None, row["loss"], row["trial"]))


def show(value: object) -> str:
    """A parameter or a figure for a table; None as nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _epoch(result: EpochResult) -> dict[str, float]:
    validation = result.validation
    return {
        "epoch": result.epoch,
        "loss": validation.loss,
        "accuracy": validation.accuracy,
        "f1": validation.f1,
        "seconds": result.seconds,
    }


def _row(trial: FrozenTrial) -> dict[str, Any]:
    epochs = trial.user_attrs.get("epochs", [])
    best: dict[str, Any] = min(epochs, key=lambda epoch: epoch["loss"], default={})
    states = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return {
        "trial": trial.number,
        "state": states.get(trial.state, "running"),
        "loss": best.get("loss"),
        "accuracy": best.get("accuracy"),
        "f1": best.get("f1"),
        "best_epoch": best.get("epoch"),
        "epochs": len(epochs),
        "seconds": sum(epoch["seconds"] for epoch in epochs),
        **trial.params,
        "reason": trial.user_attrs.get("reason", ""),
    }


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: all but the interrupted, which failed without a reason."""
    return trial.state != TrialState.FAIL or "reason" in trial.user_attrs


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _worker(output: Path) -> Iterator[Path]:
    """A folder of this process that others see as alive exactly as long as the process holds its lock."""
    folder = output / "workers" / uuid.uuid4().hex[:12]
    with _locked(output / "search.lock"):
        folder.mkdir(parents=True)
        file = (folder / "lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        file.close()


def _remove_dead_workers(workers: Path) -> None:
    for folder in workers.iterdir():
        with contextlib.suppress(BlockingIOError, FileNotFoundError), (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _mend(journal: Path) -> None:
    """Cut off a last line that a full disk or a lost machine tore: Optuna would stumble over it."""
    if journal.exists():
        lock = JournalFileSymlinkLock(str(journal))
        lock.acquire()
        try:
            data = journal.read_bytes()
            if not data.endswith(b"\n"):
                with journal.open("r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)
        finally:
            lock.release()
