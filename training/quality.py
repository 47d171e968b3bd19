"""Measure the quality of a fine-tuning on real data, one row at a time, and keep each in a small file.

    python -m training.quality stackoverflow-lora --data train-sample.csv.gz
    python -m training.quality --list
    python -m training.quality --show            # the table of all files, as in docs/training.md

A row is a data set, its options and some seeds; each seed is one run of `training.finetune` in build/quality, continued
where it was interrupted and not run again where it is finished. The TF-IDF baseline of the first seed's split stands beside it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from contract.command import UsageError, run_command
from contract.files import read_json, write_json
from training.baseline import Baseline, baseline
from training.finetune import finetune
from training.options import Finetune
from training.pretrained import EMBEDDED
from training.report import markdown_table

_LORA: dict[str, Any] = {"strategy": "lora", "learning_rate": 1e-3, "max_length": 256}
_FULL: dict[str, Any] = {"strategy": "full", "learning_rate": 1e-4, "max_length": 256}
_STACKOVERFLOW = {"dataset": "stackoverflow", "validation_share": 0.05}

_SAMPLE = _STACKOVERFLOW | {"train_rows": 12000, "test_share": 0.15, "epochs": 1, "max_length": 128}
_LONG = _LORA | {"rank": 16, "alpha": 32.0, "max_length": 384, "tokens_per_batch": 3072, "epochs": 1, "test_share": 0.15}

ROWS: dict[str, dict[str, Any]] = {
    "stackoverflow-lora": _LORA | _STACKOVERFLOW | {"test_share": 0.15, "epochs": 2},
    "stackoverflow-lora-r16": _LONG | _STACKOVERFLOW,
    "stackoverflow-tabular-lora-r16": _LONG | _STACKOVERFLOW | {"tabular": True},
    "stackoverflow-tabular-log-lora-r16": _LONG | _STACKOVERFLOW | {"tabular": True, "log_features": True},
    "stackoverflow-12000-lora": _LORA | _SAMPLE,
    "stackoverflow-12000-full": _FULL | _SAMPLE,
    "imdb-15000-lora": _LORA
    | {"dataset": "imdb", "train_rows": 15000, "validation_share": 0.03, "test_share": 0.1, "epochs": 1},
    "imdb-15000-lora-r16-end": _LORA
    | {"dataset": "imdb", "train_rows": 15000, "validation_share": 0.03, "test_share": 0.1, "epochs": 2}
    | {"rank": 16, "alpha": 32.0, "learning_rate": 5e-4, "tokens_per_batch": 4096, "truncation_side": "left"},
    "complaints-lora": _LORA | {"dataset": "complaints", "epochs": 5},
    "complaints-full": _FULL | {"dataset": "complaints", "epochs": 5},
    "yelp-lora": _LORA | {"dataset": "yelp", "epochs": 2, "learning_rate": 5e-4, "tokens_per_batch": 4096},
    "yelp-full": _FULL | {"dataset": "yelp", "epochs": 2},
}
"""Name -> options of `training.finetune` that are not its defaults."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Measure the quality of a fine-tuning on real data."""

    row: Annotated[str | None, tyro.conf.Positional] = None
    """Which; see --list."""
    list: bool = False
    """Show the rows and stop."""
    show: bool = False
    """Print the table of all measured rows and stop."""
    data: Path | None = None
    """The row's data set: a CSV, or a folder for imdb."""
    base: str = EMBEDDED
    """Base model: minilm, a Hugging Face BERT folder, or a hub name."""
    seeds: tuple[int, ...] = (0,)
    """One run each."""
    work: Path = Path("build/quality")
    """Folder of the checkpoints."""
    output: Path = Path("docs/measurements/quality")
    """Folder of the measurement files, one a row."""

    def __post_init__(self) -> None:
        if self.list or self.show:
            return
        if self.row not in ROWS:
            raise UsageError(f"the row is {self.row!r}; known are {', '.join(ROWS)}")
        if self.data is None:
            raise UsageError(f"{self.row} needs --data, the data set {ROWS[self.row]['dataset']}")
        if not self.seeds:
            raise UsageError("--seeds is empty; give at least one")


def quality(options: Quality) -> None:
    """Measure one row and write its file."""
    assert options.row is not None and options.data is not None  # noqa: S101 - checked by Quality
    settings = ROWS[options.row]
    runs = []
    for seed in options.seeds:
        output = options.work / f"{options.row}-{seed}"
        finetune(Finetune(output=output, data=options.data, base=options.base, seed=seed, resume=True, **settings))
        run = read_json(output / "run.json")
        runs.append(_summary(run, seed))
    measured = {
        "row": options.row,
        "date": datetime.now(UTC).date().isoformat(),
        "base": run["base"]["source"],
        "options": {
            key: run["configuration"][key]
            for key in ("targets", "rank", "alpha", "max_length", "truncation_side", "learning_rate")
        },
        "machine": run["machine"],
        "baseline": _baseline(options, settings),
        "runs": runs,
    }
    path = options.output / f"{options.row}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, measured)
    print(f"wrote {path}\n\n{table([measured])}")


def _summary(run: dict[str, Any], seed: int) -> dict[str, Any]:
    best = min(run["epochs"], key=lambda epoch: epoch["validation"]["loss"])
    return {
        "seed": seed,
        "rows": {part: content["rows"] for part, content in run["data"]["parts"].items()},
        "classes": len(run["data"]["labels"]),
        "trainable": run["strategy"]["trainable"],
        "total": run["strategy"]["total"],
        "best_epoch": best["epoch"],
        "epochs": [{"seconds": epoch["seconds"], "validation_loss": epoch["validation"]["loss"]} for epoch in run["epochs"]],
        "samples_per_s": statistics.median(epoch["samples_per_s"] for epoch in run["epochs"]),
        "peak_memory_bytes": run["peak_memory_bytes"],
        "test": run["test"],
    }


def _baseline(options: Quality, settings: dict[str, Any]) -> dict[str, Any]:
    shared = {key: settings[key] for key in ("dataset", "train_rows", "validation_share", "test_share") if key in settings}
    path = options.work / f"{options.row}-baseline.json"
    baseline(Baseline(data=options.data, output=path, seed=options.seeds[0], **shared))
    found: dict[str, Any] = read_json(path)["test"]
    return found


def table(measurements: list[dict[str, Any]]) -> str:
    """Markdown: one line a row; with several seeds the mean, and least to greatest."""
    header = ["row", "train / test texts", "trainable", "accuracy", "macro F1", "TF-IDF: accuracy", "macro F1", "texts/s"]
    lines = []
    for measured in measurements:
        runs = measured["runs"]
        first, plain = runs[0], measured["baseline"]
        lines.append(
            [
                measured["row"],
                f"{first['rows']['train']:,} / {first['rows']['test']:,}",
                f"{first['trainable']:,}",
                _share([run["test"]["accuracy"] for run in runs]),
                _share([run["test"]["f1"] for run in runs]),
                f"{plain['accuracy']:.2%}",
                f"{plain['f1']:.2%}",
                f"{statistics.median(run['samples_per_s'] for run in runs):.1f}",
            ]
        )
    return markdown_table(header, lines, right=header[1:])


def _share(values: list[float]) -> str:
    spread = f" ({min(values):.2%} to {max(values):.2%}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{spread}"


def read_measurements(folder: Path) -> list[dict[str, Any]]:
    """All files of `quality` in a folder, in the order of `ROWS`."""
    return [read_json(folder / f"{row}.json") for row in ROWS if (folder / f"{row}.json").exists()]


def main(options: Quality) -> None:
    """Run the command; see the module docstring."""
    if options.list:
        print("\n".join(f"{name:<28}{settings}" for name, settings in ROWS.items()))
    elif options.show:
        print(table(read_measurements(options.output)))
    else:
        quality(options)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Quality, prog="python -m training.quality", description=__doc__)))
