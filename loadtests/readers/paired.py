"""int8.json, of `python -m builders.paired`: what lower precision costs on the same labelled rows, beyond chance."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Bar, Bars, bars
from loadtests.page import Section
from loadtests.readers.fields import read_fields
from loadtests.readers.markdown import markdown_table

HEADER = ("engine", "accuracy", "points (noise)", "lost / won", "McNemar p", "other labels", "of them ties", "0.3 points")


def tables(path: Path) -> dict[str, str]:
    """Markdown: the first release, and the others beside it."""
    found = read_fields(path)
    first = found.fields("first")
    rows = [[first.text("engine"), f"{first.number('accuracy'):.2%}", "-", "-", "-", "-", "-", "-"]]
    for name, release in found.fields("releases").every():
        rows.append(
            [
                name,
                f"{release.number('accuracy'):.2%}",
                f"{release.number('points'):+.2f} ({release.number('noise_points'):.2f})",
                f"{release.number('lost'):.0f} / {release.number('won'):.0f}",
                f"{release.number('p_value'):.2g}",
                f"{release.number('flips'):.2%}",
                f"{release.number('flips_of_ties'):.2%}",
                "kept" if release.flag("passes") else "lost",
            ]
        )
    return {"all": markdown_table(HEADER, rows)}


def section(path: Path) -> Section:
    """Rows lost and won by each release."""
    found = read_fields(path)
    words = [
        f"{found.number('rows'):,.0f} held-out rows of {found.text('data')}, {found.number('mean_tokens'):.0f} tokens on "
        f"average, answered by each release; {found.text('date')}."
    ]
    moved = [
        Bar(name, [("lost", release.number("lost")), ("won", release.number("won"))])
        for name, release in found.fields("releases").every()
    ]
    chart = bars(Bars("Rows that lower precision answers otherwise than fp32", "rows", moved, names=("lost", "won")))
    return Section("Precision", words, [chart], [("Precision", tables(path)["all"])])
