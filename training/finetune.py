"""Fine-tune BERT on labelled texts and write a checkpoint folder.

    python -m training.finetune --output build/finetuned
    python -m training.finetune --strategy last --k 2 --dataset imdb --data aclImdb --output build/imdb
    python -m training.finetune --dataset csv --data reviews.csv --text review --label stars --output build/reviews
    torchrun --nproc-per-node 2 -m training.finetune --output build/finetuned

SIGTERM or Ctrl-C saves the run within one step; the same command with --resume continues it to the same bits. The test
part is evaluated once, at the end, with the epoch that the validation part chose. Prove and merge the result with
`python -m training.merge`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from contract.command import UsageError, run_command
from contract.files import new_folder, read_json, write_json_lines
from training.adapter import adapter_bytes
from training.assemble import Assemble, Assembled, Task, assemble
from training.bert import BertForSequenceClassification
from training.checkpoint import RUN_FILE, write_checkpoint
from training.distributed import Workers, choose_device, join_workers
from training.evaluation import EVALUATION_FACTOR, compute_logits, measure, resolve_precision
from training.loop import EpochResult, Plan, Training
from training.metrics import Metrics
from training.options import Finetune
from training.prefix import PrefixCache
from training.record import (
    PREDICTIONS_FILE,
    Machine,
    check_same,
    describe_run,
    epoch_row,
    identify,
    peak_memory_bytes,
    reset_peak_memory,
)
from training.state import STATE_FILE, Interrupted, StopSignals, hold, load_state, state_folder
from training.strategies import lowest_trained_layer
from training.tracking import METRICS_FILE, MetricsLog, Tracker, open_tracker

__all__ = ["Finetune", "finetune"]

PROJECT = "bert-on-triton"


def finetune(
    options: Finetune, *, on_epoch: Callable[[EpochResult], None] | None = None, assemble: Assemble = assemble
) -> None:
    """Run the whole of it; see the module docstring. `assemble` makes what is trained.

    `on_epoch` is called after each validation, in every process.

    Raises:
        UsageError: options, data or a base that cannot be used; an output or an interrupted run that exists.
        Failure: the training diverged, memory or disk ran out.
        SystemExit: SIGTERM or SIGINT came and the run is saved; 128 + the signal's number.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    with join_workers() as workers:
        if options.resume and options.output.exists():
            check_same(options, read_json(options.output / RUN_FILE)["configuration"])
            _say(workers, f"{options.output} is finished already")
            if workers.first:
                shutil.rmtree(state_folder(options.output), ignore_errors=True)  # where a kill came between the two
            return
        started = time.perf_counter()
        with hold(state_folder(options.output)) if workers.first else contextlib.nullcontext():
            _run(options, workers, on_epoch, assemble)
    if workers.first:
        size = f" (adapter and head: {adapter_bytes(options.output) / 1e6:.2f} MB)" if options.strategy == "lora" else ""
        print(f"wrote {options.output}{size} in {time.perf_counter() - started:.0f} s")


def _run(options: Finetune, workers: Workers, on_epoch: Callable[[EpochResult], None] | None, assemble: Assemble) -> None:
    """Run it, and leave either the output or a state that can be continued."""
    state = state_folder(options.output)
    try:
        with StopSignals().caught():  # while nothing trains too: reading, evaluating, writing
            _open_state(options, workers)
            with new_folder(options.output) if workers.first else contextlib.nullcontext() as folder:
                _train(_prepare(options, workers, assemble), folder, on_epoch)
        if workers.first:
            shutil.rmtree(state)
    except Interrupted as signal:
        kept = f"the run is saved in {state}; continue it by the same command with --resume"
        _say(
            workers, f"\n{signal}: {kept if (state / STATE_FILE).exists() else 'nothing was trained yet, and nothing is kept'}"
        )
        raise SystemExit(128 + signal.number) from None
    finally:
        if workers.first and not (state / STATE_FILE).exists():
            shutil.rmtree(state, ignore_errors=True)


def _open_state(options: Finetune, workers: Workers) -> None:
    """Check and tidy the folder of the run's state. Raises UsageError when a run is there and not asked for."""
    state = state_folder(options.output)
    if not workers.first:
        return
    if options.output.exists():
        raise UsageError(f"the output {options.output} exists already; name another one, or remove it first")
    if (state / STATE_FILE).exists() and not options.resume:
        raise UsageError(f"{state} holds an interrupted run; continue it with --resume, or remove that folder")
    if not (state / STATE_FILE).exists():
        (state / METRICS_FILE).unlink(missing_ok=True)  # of a run that was killed before it saved anything
    for folder in options.output.parent.glob(f".{glob.escape(options.output.name)}.partial-*"):
        shutil.rmtree(folder)  # half-written, by a run that was killed
    for file in state.glob(".*"):
        file.unlink()


@dataclass(frozen=True)
class _Run:
    """One run, ready to train."""

    options: Finetune
    workers: Workers
    assembled: Assembled
    machine: Machine

    @property
    def state(self) -> Path:
        """Where its state is kept until it is done."""
        return state_folder(self.options.output)

    @property
    def task(self) -> Task:
        """The texts."""
        return self.assembled.task

    @property
    def model(self) -> BertForSequenceClassification:
        """What trains."""
        return self.assembled.model


def _prepare(options: Finetune, workers: Workers, assemble: Assemble) -> _Run:
    device = choose_device(options.device)
    reset_peak_memory(device)
    assembled = assemble(options, device, progress=workers.first)
    machine = Machine(device, resolve_precision(options.precision, device), workers.count)
    _say(workers, f"{assembled.description}\n{assembled.task.describe()}; {machine.describe()}")
    return _Run(options, workers, assembled, machine)


def _train(run: _Run, folder: Path | None, on_epoch: Callable[[EpochResult], None] | None) -> None:
    """Train, evaluate the test part, and, in the process that has a `folder`, write the checkpoint into it."""
    log = MetricsLog(run.state / METRICS_FILE)
    with _tracked(run) as tracker:

        def report(result: EpochResult) -> None:
            if run.workers.first:
                _print_epoch(result)
                log.append(epoch_row(result))
                tracker.log({key: value for key, value in epoch_row(result).items() if key != "epoch"}, result.epoch)
            if on_epoch:
                on_epoch(result)

        epochs = [] if run.options.strategy == "none" else _fit(run, report)
        logits = compute_logits(
            run.model,
            run.task.test,
            tokens_per_batch=run.options.tokens_per_batch * EVALUATION_FACTOR,
            progress="test" if run.workers.first else "",
            workers=run.workers,
        )
        if folder is not None:
            test = measure(logits, run.task.test.labels)
            best = max((result.epoch for result in epochs if result.best), default=0)
            print(f"test, {f'with epoch {best}' if best else 'untrained'}: {test}")
            log.append({"part": "test", **dataclasses.asdict(test)})
            tracker.log({f"test/{key}": value for key, value in dataclasses.asdict(test).items()}, len(epochs))
            _write(run, folder, epochs, logits, test)
            tracker.log_checkpoint(folder)


def _write(run: _Run, folder: Path, epochs: list[EpochResult], logits: Tensor, test: Metrics) -> None:
    from training.recheck import recheck  # scikit-learn takes a second to import

    names = run.task.dataset.names
    rows = zip(run.task.test.labels, logits.argmax(1).tolist(), logits.tolist(), strict=True)
    predictions = ({"label": names[true], "predicted": names[got], "logits": scores} for true, got, scores in rows)
    write_json_lines(folder / PREDICTIONS_FILE, predictions)
    shutil.copy(run.state / METRICS_FILE, folder / METRICS_FILE)
    record = describe_run(
        run.options,
        run.task,
        run.model,
        description=run.assembled.description,
        epochs=epochs,
        test=test,
        peak_bytes=peak_memory_bytes(run.machine.device),
        machine=run.machine,
    )
    write_checkpoint(folder, run.model, run.task, run.options, record)
    recheck(folder)
    run.assembled.complete(folder)


def _fit(run: _Run, report: Callable[[EpochResult], None]) -> list[EpochResult]:
    options = run.options
    plan = Plan(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_share=options.warmup_share,
        schedule=options.schedule,
        tokens_per_batch=options.tokens_per_batch,
        batch_rows=options.batch_rows,
        dtype=run.machine.dtype,
        seed=options.seed,
        save_every_s=options.save_every_s,
        loss_to_beat=run.assembled.loss_to_beat,
    )
    if run.workers.rank:
        torch.manual_seed(options.seed + run.workers.rank)  # the weights are drawn; every worker's dropout is its own
    training = Training(
        run.model,
        run.task.train,
        run.task.validation,
        plan,
        workers=run.workers,
        state_file=run.state / STATE_FILE,
        identity=identify(options, run.task, run.machine) | run.assembled.identity,
        cache=_cache(run),
    )
    if options.resume and (run.state / STATE_FILE).exists():
        _continue(run, training)
    return training.fit(report)


def _continue(run: _Run, training: Training) -> None:
    """Take up the saved state. Raises UsageError when it is that of another run."""
    tensors, values = load_state(run.state / STATE_FILE)
    was, now = run.options.beside_defaults(values["identity"]), training.identity
    different = [f"{key} was {was.get(key)!r}, is {now[key]!r}" for key in now if was.get(key) != now[key]]
    if different:
        raise UsageError(
            f"--resume cannot continue {run.state}: {'; '.join(different)}. Use the same again, or remove that folder"
        )
    training.restore(tensors, values)
    _say(run.workers, f"continuing in epoch {len(training.results) + 1}, after batch {training.done}")


def _cache(run: _Run) -> PrefixCache | None:
    if not run.options.cache_prefix:
        return None
    layers = min(lowest_trained_layer(run.model), len(run.model.bert.encoder.layer) - 1)
    if layers < 1 or run.workers.count > 1:
        raise UsageError(
            f"--cache-prefix needs a frozen layer below the lowest trained one and one process; the model has {layers} such "
            f"layers, and {run.workers.count} process(es) run: choose --strategy last, or --layers of the head side"
        )
    path = run.state / "prefix.bin"
    path.unlink(missing_ok=True)
    tokens = run.options.tokens_per_batch
    return PrefixCache(run.model, run.task.train, path, layers=layers, tokens_per_batch=tokens, dtype=run.machine.dtype)


def _tracked(run: _Run) -> Tracker:
    """The tracker that was asked for, in the first process alone; its local files lie beside the output."""
    return open_tracker(
        run.options.track if run.workers.first else "none",
        folder=run.state.with_name("runs"),
        project=PROJECT,
        run_name=run.options.output.name,
        configuration=run.options.to_json(),
    )


def _print_epoch(result: EpochResult) -> None:
    print(
        f"epoch {result.epoch}: train loss {result.train_loss:.4f} ({result.samples_per_s:.1f} texts/s); validation "
        f"{result.validation}{'  <- best so far' if result.best else ''}",
        flush=True,
    )


def _say(workers: Workers, text: str) -> None:
    if workers.first:
        print(text, flush=True)


if __name__ == "__main__":
    run_command(lambda: finetune(tyro.cli(Finetune, prog="python -m training.finetune", description=__doc__)))
