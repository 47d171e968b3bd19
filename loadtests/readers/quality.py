"""quality/*.json, of `python -m training.quality`: the table is that command's; accuracy is drawn against training speed."""

from __future__ import annotations

import statistics
from pathlib import Path

from loadtests.charts import Bar, Bars, Plot, Series, bars, plot
from loadtests.page import Section
from loadtests.readers.commands import table_of
from loadtests.readers.fields import read_fields


def tables(folder: Path) -> dict[str, str]:
    """Markdown, as the pages show it."""
    return {"all": table_of("training.quality", "--show", "--output", str(folder.resolve()))}


def section(folder: Path) -> Section:
    """Quality of fine-tunings on real data, beside TF-IDF."""
    series, rows = [], []
    for path in sorted(folder.glob("*.json")):
        found = read_fields(path)
        name, runs = found.text("row"), found.rows("runs")
        accuracies = [100 * run.fields("test").number("accuracy") for run in runs]
        speed = statistics.median(run.number("samples_per_s") for run in runs)
        series.append(Series(name, [(speed, statistics.mean(accuracies))], joined=False))
        rows.append(Bar(name, [("fine-tuned", statistics.mean(accuracies))], (min(accuracies), max(accuracies))))
        rows.append(Bar(f"{name}, TF-IDF", [("TF-IDF and a linear model", 100 * found.fields("baseline").number("accuracy"))]))
    charts = [
        plot(Plot("Quality against training speed", "texts/s in training", "accuracy, %", series, from_zero=False)),
        bars(Bars("Accuracy on texts never trained on", "%", rows)),
    ]
    return Section(
        "Quality",
        ["Each row is one fine-tuning of real data, measured on its held-out part."],
        charts,
        [("Quality", tables(folder)["all"])],
    )
