"""Run several published configurations and lay them side by side: Markdown, CSV and one HTML page with plots.

    python -m training.compare stackoverflow-lora-r8 imdb-lora \\
        --data stackoverflow=train-sample.csv imdb=aclImdb --output build/compare
    python -m training.compare --report-only --output build/compare

Every recipe runs in a process of its own (`training.replay`), so that its peak memory is its own and its death takes
nothing else along; what it prints is also in OUTPUT/NAME.log. Finished recipes are skipped and interrupted ones continued:
give the same command again after any interruption. A finished recipe of other options is an error, before anything runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from contract.command import Failure, UsageError, run_command
from contract.files import read_json, write_bytes, write_json
from training.evaluation import Precision
from training.options import Finetune
from training.page import render_page
from training.plots import all_plots
from training.pretrained import find_base
from training.published import Recipe
from training.recipes import RECIPES, find_recipe
from training.record import check_same
from training.replay import CLEANING, Replay, refuse_many_processes, settings_for
from training.report import NOT_RUN, Run, markdown, read_run, to_csv
from training.tracking import TrackerName

_PASSED_ON = ("base", "train_rows", "test_rows", "epochs", "max_length", "batch_rows", "precision", "threads", "track")
_FAILURES = "failures.json"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Run several published configurations and compare them."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Recipes or aliases; python -m training.replay --list shows them. With --report-only may be left out: all of OUTPUT."""
    output: Path
    """Folder for the runs, one folder each, and for comparison.md, .csv and .html."""
    data: tuple[str, ...] = ()
    """DATASET=FILE for each data set that the recipes read, as stackoverflow=train-sample.csv."""
    base: str | None = None
    """Base model of every run: a Hugging Face BERT folder, a hub name, or minilm; each recipe's own when left out."""
    sample_frac: float | None = None
    """Share of the complaints to draw at random, instead of the published 0.1: of a small file, 1."""
    class_threshold: int | None = None
    """Complaints that a product must have to be a class, instead of the published 1,000."""
    train_rows: int | None = None
    """Train on at most this many texts."""
    test_rows: int | None = None
    """Evaluate on about this many texts at most, and choose the best epoch on half as many."""
    epochs: int | None = None
    """Passes over the training part, instead of the published numbers."""
    max_length: int | None = None
    """Tokens read of a text, instead of the published numbers."""
    batch_rows: int | None = None
    """Texts in a batch, instead of the published numbers."""
    precision: Precision | None = None
    """Precision of the training, instead of the published one."""
    threads: int | None = None
    """CPU threads of a run; torch's choice when left out."""
    track: TrackerName | None = None
    """Also report each run to tensorboard, wandb or mlflow."""
    report_only: bool = False
    """Run nothing; write the report again from the folders that are there."""

    def __post_init__(self) -> None:
        if not self.recipes and not self.report_only:
            raise UsageError("name the recipes to run; python -m training.replay --list shows them")
        chosen = [find_recipe(name) for name in self.recipes]
        files = self.files
        for recipe in () if self.report_only else chosen:
            if recipe.dataset not in files:
                raise UsageError(f"{recipe.name} reads {recipe.dataset}; name its file with --data {recipe.dataset}=FILE")
            if not files[recipe.dataset].exists():
                raise UsageError(f"--data {recipe.dataset}={files[recipe.dataset]}: there is no such file or folder")
        for name in CLEANING:
            if getattr(self, name) is not None and all(recipe.dataset != "complaints" for recipe in chosen):
                raise UsageError(f"--{name.replace('_', '-')} is for complaints, and no recipe here reads them")

    @property
    def files(self) -> dict[str, Path]:
        """File by data set. Raises `UsageError` for what is not DATASET=FILE."""
        pairs = [entry.partition("=") for entry in self.data]
        wrong = [entry for entry, (name, _, file) in zip(self.data, pairs, strict=True) if not (name and file)]
        if wrong:
            raise UsageError(f"--data {wrong[0]} is not DATASET=FILE, as stackoverflow=train-sample.csv")
        return {name: Path(file) for name, _, file in pairs}

    def passed_on(self, recipe: Recipe) -> dict[str, Any]:
        """The options that `training.replay` is given for a recipe."""
        names = (*_PASSED_ON, *(CLEANING if recipe.dataset == "complaints" else ()))
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"data": self.files[recipe.dataset], "output": self.output / recipe.name, **given}


def compare(options: Compare) -> None:
    """Run what is not finished, then write the report.

    Raises:
        UsageError: a recipe is finished with other options.
        Failure: a recipe failed, or with --report-only was never run; the others are reported.
    """
    refuse_many_processes()
    recipes = list({recipe.name: recipe for recipe in map(find_recipe, options.recipes)}.values())  # an alias is no second run
    if not options.report_only:
        options.output.mkdir(parents=True, exist_ok=True)
        finished = [recipe for recipe in recipes if (options.output / recipe.name / "run.json").exists()]
        for recipe in finished:
            _check_finished(recipe, options)
        for number, recipe in enumerate(recipes, 1):
            print(f"recipe {number} of {len(recipes)}: {recipe.name}", flush=True)
            if recipe in finished:
                print("  finished before with the same options, skipped")
            else:
                _run_and_note(recipe, options)
    runs = collect(options.output, [recipe.name for recipe in recipes])
    write_report(options.output, runs)
    wrong = [run for run in runs if run.error]
    print(f"wrote {options.output / 'comparison.html'}, .md and .csv: {len(runs) - len(wrong)} of {len(runs)} finished")
    if wrong:
        raise Failure(
            f"{len(wrong)} of {len(runs)} have no figures: " + "; ".join(f"{run.name}: {run.failure}" for run in wrong)
        )


def _check_finished(recipe: Recipe, options: Compare) -> None:
    """Raise `UsageError` when a finished recipe had other options than it would have now, on the base that it had."""
    configuration = read_run(options.output / recipe.name).record["configuration"]
    base = options.base or configuration["base"]
    wanted = settings_for(recipe, Replay(name=recipe.name, **options.passed_on(recipe)), base=base, folder=find_base(base))
    check_same(Finetune(**wanted), configuration)


def _run_and_note(recipe: Recipe, options: Compare) -> None:
    error = run_recipe(recipe, options)
    failures = _failures(options.output)
    failures.pop(recipe.name, None)
    if error:
        failures[recipe.name] = error
        print(f"  failed: {error}", file=sys.stderr, flush=True)
    write_json(options.output / _FAILURES, failures)


def _failures(folder: Path) -> dict[str, str]:
    path = folder / _FAILURES
    return read_json(path) if path.exists() else {}


def run_recipe(recipe: Recipe, options: Compare) -> str:
    """Replay one recipe in its own process; the error that ended it, "" when it went well.

    Raises:
        SystemExit: SIGTERM or SIGINT came; the recipe saved its state, and the same command continues it.
    """
    command = [sys.executable, "-u", "-m", "training.replay", recipe.name, "--resume"]
    for name, value in options.passed_on(recipe).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    log = options.output / f"{recipe.name}.log"
    with (
        log.open("wb") as file,
        _signals_passed_on() as (received, pass_to),
        # In a session of its own it gets no Ctrl-C of the terminal beside the one that is passed on.
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        pass_to(process)
        _show_and_keep(process, file.fileno())
        code = process.wait()
    if received or code in {128 + signal.SIGINT, 128 + signal.SIGTERM}:
        raise SystemExit(128 + received[0] if received else code)
    return _last_words(log, code) if code else ""


@contextlib.contextmanager
def _signals_passed_on() -> Iterator[tuple[list[int], Callable[[subprocess.Popen[bytes]], None]]]:
    """(the signals that came, a function that names the process to tell): it saves its state and ends by itself.

    It is told once: a second signal would make it stop without saving. One may come before the process is there.
    """
    received: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []
    once = iter([True])

    def tell() -> None:
        if received and processes and next(once, False):
            processes[0].send_signal(received[0])

    def handle(number: int, _: types.FrameType | None) -> None:
        received.append(number)
        tell()

    def pass_to(process: subprocess.Popen[bytes]) -> None:
        processes.append(process)
        tell()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received, pass_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_and_keep(process: subprocess.Popen[bytes], log: int) -> None:
    """Pass on what the process prints as it comes, progress bars too, and keep it."""
    assert process.stdout is not None  # noqa: S101 - an invariant for the type checker
    while data := os.read(process.stdout.fileno(), 65536):
        os.write(log, data)
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _last_words(log: Path, code: int) -> str:
    """The message of a command that failed: its `error:` or `failed:` line, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    said = [line.split(": ", 1)[1] for line in lines if line.startswith(("error: ", "failed: "))] or lines
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{said[-1] if said else 'no message'} ({ended}; see {log})"


def collect(folder: Path, names: Sequence[str] = ()) -> list[Run]:
    """The runs of `names` in a comparison's folder, else all in the order of the recipes; failed and missing ones as errors.

    Raises:
        UsageError: there are none, and none was named.
    """
    failures = _failures(folder)
    found = {path.parent.name for path in folder.glob("*/run.json") if not path.parent.name.startswith(".")}
    order = {recipe.name: place for place, recipe in enumerate(RECIPES)}
    wanted = list(names) or sorted(found | set(failures), key=lambda name: (order.get(name, len(order)), name))
    if not wanted:
        raise UsageError(f"{folder} holds no finished run; run training.compare first")
    return [
        read_run(folder / name)
        if name in found
        else Run(name=name, recipe=find_recipe(name), error=failures.get(name, NOT_RUN))
        for name in wanted
    ]


def write_report(folder: Path, runs: Sequence[Run]) -> None:
    """Write comparison.md, comparison.csv and comparison.html, each whole or not at all."""
    write_bytes(folder / "comparison.md", markdown(runs).encode())
    write_bytes(folder / "comparison.csv", to_csv(runs).encode())
    write_bytes(folder / "comparison.html", render_page(runs, all_plots(runs)).encode())


if __name__ == "__main__":
    run_command(lambda: compare(tyro.cli(Compare, prog="python -m training.compare", description=__doc__)))
