"""Run several published configurations and lay them side by side: Markdown, CSV and one HTML page with plots.

    python -m training.compare stackoverflow-lora-r8 imdb-lora \\
        --data stackoverflow=train-sample.csv imdb=aclImdb --output build/compare
    python -m training.compare --report-only --output build/compare

Every recipe runs in a process of its own (`training.replay`), so that its peak memory is its own and its death takes
nothing else along; what it prints is also in OUTPUT/NAME.log. Finished recipes are skipped and interrupted ones continued:
give the same command again after any interruption.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import Failure, UsageError, run_command
from contract.files import read_json, write_bytes, write_json
from training.evaluation import Precision
from training.page import render_page
from training.plots import all_plots
from training.published import Recipe
from training.recipes import RECIPES, find_recipe
from training.report import Run, markdown, read_run, to_csv

_PASSED_ON = ("base", "train_rows", "test_rows", "epochs", "max_length", "batch_rows", "precision", "threads")
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

    @property
    def files(self) -> dict[str, Path]:
        """File by data set. Raises `UsageError` for what is not DATASET=FILE."""
        pairs = [entry.partition("=") for entry in self.data]
        wrong = [entry for entry, (name, _, file) in zip(self.data, pairs, strict=True) if not (name and file)]
        if wrong:
            raise UsageError(f"--data {wrong[0]} is not DATASET=FILE, as stackoverflow=train-sample.csv")
        return {name: Path(file) for name, _, file in pairs}


def compare(options: Compare) -> None:
    """Run what is not finished, then write the report. Raises `Failure` when a recipe failed; the others are reported."""
    recipes = list({recipe.name: recipe for recipe in map(find_recipe, options.recipes)}.values())  # an alias is no second run
    if not options.report_only:
        options.output.mkdir(parents=True, exist_ok=True)
        for number, recipe in enumerate(recipes, 1):
            print(f"recipe {number} of {len(recipes)}: {recipe.name}", flush=True)
            _run_or_skip(recipe, options)
    runs = collect(options.output, [recipe.name for recipe in recipes])
    write_report(options.output, runs)
    failed = [run for run in runs if run.error]
    print(f"wrote {options.output / 'comparison.html'}, .md and .csv: {len(runs) - len(failed)} of {len(runs)} finished")
    if failed:
        raise Failure(f"{len(failed)} of {len(runs)} failed: " + "; ".join(f"{run.name}: {run.error}" for run in failed))


def _run_or_skip(recipe: Recipe, options: Compare) -> None:
    folder = options.output / recipe.name
    if (folder / "run.json").exists():
        configuration = read_run(folder).record["configuration"]
        wanted = {name: getattr(options, name) for name in _PASSED_ON if name not in {"test_rows", "threads"}}
        other = [n for n, value in wanted.items() if value is not None and configuration.get(n, value) != value]
        print(
            "  finished before, skipped" + (f"; its {', '.join(other)} differ: remove {folder} to run it anew" if other else "")
        )
        return
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
    arguments = ["--data", str(options.files[recipe.dataset]), "--output", str(options.output / recipe.name), "--resume"]
    for name in _PASSED_ON:
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    log = options.output / f"{recipe.name}.log"
    command = [sys.executable, "-u", "-m", "training.replay", recipe.name, *arguments]
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
        _signals_for(process) as received,
    ):
        _show_and_keep(process, file.fileno())
        code = process.wait()
    if received or code in {128 + signal.SIGINT, 128 + signal.SIGTERM}:
        raise SystemExit(128 + received[0] if received else code)
    return _last_words(log, code) if code else ""


@contextlib.contextmanager
def _signals_for(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Let the process end by itself, saving its state, when this one is signalled; the signals that came.

    Ctrl-C reaches both processes. A second signal would make the other one stop without saving, so only SIGTERM is passed on.
    """
    received: list[int] = []

    def handle(number: int, _: types.FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
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
    """The runs of a comparison's folder, failed ones as their errors; those of `names`, or all in the order of the recipes.

    Raises:
        UsageError: there are none.
    """
    failures = _failures(folder)
    found = {path.parent.name for path in folder.glob("*/run.json") if not path.parent.name.startswith(".")}
    order = {recipe.name: place for place, recipe in enumerate(RECIPES)}
    wanted = list(names) or sorted(found | set(failures), key=lambda name: (order.get(name, len(order)), name))
    runs = [
        read_run(folder / name) if name in found else Run(name=name, recipe=find_recipe(name), error=failures[name])
        for name in wanted
        if name in found or name in failures
    ]
    if not runs:
        raise UsageError(
            f"{folder} holds no finished run{' of ' + ', '.join(names) if names else ''}; run training.compare first"
        )
    return runs


def write_report(folder: Path, runs: Sequence[Run]) -> None:
    """Write comparison.md, comparison.csv and comparison.html, each whole or not at all."""
    write_bytes(folder / "comparison.md", markdown(runs).encode())
    write_bytes(folder / "comparison.csv", to_csv(runs).encode())
    write_bytes(folder / "comparison.html", render_page(runs, all_plots(runs)).encode())


if __name__ == "__main__":
    run_command(lambda: compare(tyro.cli(Compare, prog="python -m training.compare", description=__doc__)))
