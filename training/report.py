"""Fine-tuning runs as rows: what was published beside what was obtained, as Markdown and CSV.

The rows come from the `run.json` of each checkpoint folder, never from a log. Plots are `training.plots`, the HTML page
is `training.page`, and the command that runs recipes and writes all of them is `training.compare`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json
from training.published import Recipe
from training.recipes import find_recipe

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
NOT_RUN = "not run"
"""The error of a run that was asked for and never started."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished fine-tuning, or the error that ended it."""

    name: str
    recipe: Recipe | None = None
    """The published configuration that it replays, if any."""
    record: dict[str, Any] = field(default_factory=dict)
    """The content of `run.json`; empty after an error."""
    stored_bytes: int | None = None
    """Size of what the run adds to its base: the adapter, or with other strategies the whole model."""
    error: str = ""
    full: Run | None = None
    """The run of the same comparison whose time per epoch this one is measured by; `beside_full` finds it."""

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The epochs of `run.json`; none for the strategy `none`."""
        return self.record.get("epochs", [])  # type: ignore[no-any-return]

    @property
    def obtained(self) -> dict[str, Any]:
        """Figures of the run by column; None where there are none."""
        strategy, test, epochs = self.record.get("strategy", {}), self.record.get("test", {}), self.epochs
        counts = strategy.get("trainable"), strategy.get("total")
        return {
            **{name: test.get(name) for name in ("loss", "accuracy", "f1", "weighted_f1")},
            "trainable": counts[0],
            "total": counts[1],
            "relative": None if counts[1] is None else counts[0] / counts[1],
            "best_epoch": max((epoch["epoch"] for epoch in epochs if epoch["best"]), default=None),
            "seconds_per_epoch": self.seconds_per_epoch,
            "time_against_full": _ratio(self.seconds_per_epoch, self.full.seconds_per_epoch if self.full else None),
            "training_seconds": sum(epoch["seconds"] for epoch in epochs) if epochs else None,
            "samples_per_s": _mean([epoch["samples_per_s"] for epoch in epochs]),
            "peak_memory_bytes": self.record.get("peak_memory_bytes"),
            "stored_bytes": self.stored_bytes,
        }

    @property
    def seconds_per_epoch(self) -> float | None:
        """Mean seconds of training an epoch; None where nothing was trained."""
        return _mean([epoch["seconds"] for epoch in self.epochs])

    @property
    def failure(self) -> str:
        """Why there are no figures, in a sentence's words; "" where there are."""
        return self.error if self.error in {"", NOT_RUN} else f"failed: {self.error}"

    @property
    def differences(self) -> list[str]:
        """How the run departs from its recipe: other settings, fewer rows."""
        if self.recipe is None or not self.record:
            return []
        return self.recipe.differences(self.record["configuration"], self.record.get("data", {}).get("parts"))

    @property
    def notes(self) -> list[str]:
        """What a reader must know beside the figures: the error, departures from the recipe, reasons for differences."""
        found = [self.failure, *self.differences]
        if self.recipe is not None:
            found += [*self.recipe.otherwise, self.recipe.remark]
        return [note for note in found if note]


@dataclass(frozen=True)
class Column:
    """One figure of the table."""

    key: str
    title: str
    show: Callable[[Any], str]


def format_share(value: float) -> str:
    """0.7857 as 78.57 %; small shares keep two digits, as 0.027 %."""
    return f"{100 * value:.2f} %" if value >= 0.001 or not value else f"{100 * value:.2g} %"


def format_bytes(value: float) -> str:
    """In decimal units: kB, MB or GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value / 1e3:.1f} kB"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


COLUMNS = (
    Column("loss", "loss", "{:.4f}".format),
    Column("accuracy", "accuracy", format_share),
    Column("f1", "macro F1", format_share),
    Column("weighted_f1", "weighted F1", format_share),
    Column("trainable", "trainable", _whole),
    Column("relative", "of all", format_share),
    Column("seconds_per_epoch", "s/epoch", "{:,.1f}".format),
    Column("time_against_full", "time against full", "{:.2f}".format),
    Column("training_seconds", "training s", "{:,.1f}".format),
    Column("samples_per_s", "samples/s", "{:,.1f}".format),
    Column("peak_memory_bytes", "peak memory", format_bytes),
    Column("best_epoch", "best epoch", _whole),
    Column("stored_bytes", "stored", format_bytes),
)


def read_run(folder: Path, *, recipe: Recipe | None = None) -> Run:
    """The run of a checkpoint folder; its recipe is the one of the folder's name unless given.

    Raises:
        UsageError: no `run.json`, or one without the figures of a finished run.
    """
    record = read_json(folder / "run.json")
    missing = [key for key in ("configuration", "strategy", "epochs", "test") if key not in record]
    if missing:
        raise UsageError(f"{folder / 'run.json'} lacks {', '.join(missing)}; it is not of this version's training.finetune")
    sizes = [(folder / name).stat().st_size for name in WEIGHTS if (folder / name).exists()]
    return Run(
        name=folder.name, recipe=recipe or _recipe_of(folder.name), record=record, stored_bytes=sizes[0] if sizes else None
    )


def _recipe_of(name: str) -> Recipe | None:
    try:
        return find_recipe(name)
    except UsageError:
        return None  # a run of one's own: it has no published figures


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def beside_full(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with the first `full` run among them of the same data set and base that reads text alone."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        if run.record and run.record["strategy"]["name"] == "full" and not run.record["configuration"].get("tabular"):
            found.setdefault(_task(run), run)
    return [replace(run, full=found.get(_task(run)) if run.record else None) for run in runs]


def _task(run: Run) -> tuple[str, str]:
    return run.record["data"]["name"], run.record["base"]["source"]


def published_of(run: Run, key: str) -> Any:
    """The published figure of a column, or None."""
    published = run.recipe.published if run.recipe else None
    if key == "time_against_full":
        full = run.full.recipe if run.full else None
        if not (published and full and run.recipe and full.base == run.recipe.base):
            return None
        return _ratio(published.seconds_per_epoch, full.published.seconds_per_epoch)
    if key == "relative" and published and published.trainable is not None and published.total:
        return published.trainable / published.total
    return getattr(published, key, None)


def show_pair(run: Run, column: Column) -> tuple[str, str]:
    """(published, obtained) of one cell, "" where there is none."""
    values = published_of(run, column.key), run.obtained[column.key]
    return tuple("" if value is None else column.show(value) for value in values)  # type: ignore[return-value]


def markdown(runs: Sequence[Run]) -> str:
    """One table of all runs, then what has to be said about each."""
    runs = beside_full(runs)
    rows = [[run.name, *(_cell(*show_pair(run, column)) for column in COLUMNS)] for run in runs]
    titles = [column.title for column in COLUMNS]
    table = markdown_table(["run", *titles], rows, right=titles)
    notes = [f"- {run.name}: {'. '.join(note.rstrip('.') for note in run.notes)}." for run in runs if run.notes]
    legend = ["Cells with a bar are published \\| obtained.", ""] if any(run.recipe for run in runs) else []
    return "\n".join([*legend, table, "", *notes]).rstrip() + "\n"


def _cell(published: str, obtained: str) -> str:
    return f"{published} \\| {obtained or '-'}" if published else obtained


def single(run: Run) -> str:
    """One run as lines of published and obtained figures, for a terminal."""
    shown = [(column.title, show_pair(run, column)) for column in COLUMNS]
    rows = [[title, *(part or "-" for part in pair)] for title, pair in shown if any(pair)]
    return markdown_table(["", "published", "obtained"], rows, right=["published", "obtained"])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """A Markdown table with its columns padded, so that it is read in a terminal too; `right` names those aligned right."""
    widths = [max(3, *(len(row[place]) for row in [header, *rows])) for place in range(len(header))]
    aligned = [name in right for name in header]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, aligned, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if to_right else "-") for width, to_right in zip(widths, aligned, strict=True)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def to_csv(runs: Sequence[Run]) -> str:
    """One row a run with raw numbers; published figures have their own columns, `published_...`."""
    runs = beside_full(runs)
    keys = [column.key for column in COLUMNS]
    names = ["run", "recipe", "base", "strategy", "rank", "alpha", "total", *keys, "precision", "recall"]
    names += [*(f"published_{key}" for key in keys), "notes"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerow(
            {
                "run": run.name,
                "recipe": run.recipe.name if run.recipe else "",
                "base": run.record.get("base", {}).get("source", ""),
                "strategy": run.record.get("strategy", {}).get("name", ""),
                **_lora(run),
                **run.obtained,
                **{name: run.record.get("test", {}).get(name) for name in ("precision", "recall")},
                **{f"published_{key}": published_of(run, key) for key in keys},
                "notes": " | ".join(run.notes),
            }
        )
    return text.getvalue()


def _lora(run: Run) -> dict[str, Any]:
    """Rank and alpha of a run with LoRA; other strategies have the options too, and no use for them."""
    has_lora = run.record.get("strategy", {}).get("name") == "lora"
    return {name: run.record["configuration"].get(name) if has_lora else None for name in ("rank", "alpha")}
