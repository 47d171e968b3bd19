"""training.json, of `make bench-train`: the tables are `training.bench`'s."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Bar, Bars, bars
from loadtests.page import Section
from loadtests.readers.commands import table_of
from loadtests.readers.fields import Fields, read_fields


def tables(path: Path) -> dict[str, str]:
    """Markdown, as the pages show it."""
    return {"all": table_of("training.bench", "--show", "--output", str(path.resolve()))}


def spread_bar(name: str, entry: Fields, series: str = "") -> Bar:
    """A median with its least and greatest."""
    return Bar(name, [(series, entry.number("median"))], (entry.number("min"), entry.number("max")))


def section(path: Path) -> Section:
    """Training speed beside transformers and PEFT."""
    found = read_fields(path)
    strategies = found.fields("strategies")
    speeds = [
        spread_bar(name, entry, "PEFT" if name.startswith("PEFT") else "ours")
        for name, entry in strategies.fields("texts_per_s").every()
    ]
    ratios = [
        spread_bar(f"{entry.text('faster')} / {entry.text('slower')}" + _goal(entry), entry)
        for entry in strategies.rows("ratios")
    ]
    words = [
        f"The same base ({found.text('base')}), texts ({found.text('data')}, {found.number('mean_tokens'):.0f} tokens on "
        f"average), rank and batch for all, in turn, {found.number('rounds'):.0f} rounds, {found.number('cores'):.0f} cores, "
        f"{found.text('date')}."
    ]
    charts = [
        bars(Bars("Training speed", "texts/s", speeds, names=("ours", "PEFT"))),
        bars(Bars("How many times faster", "times", ratios)),
    ]
    return Section("Training", words, charts, [("Training speed", tables(path)["all"])])


def _goal(entry: Fields) -> str:
    return f" (goal {entry.number('goal'):g})" if "goal" in entry else ""
