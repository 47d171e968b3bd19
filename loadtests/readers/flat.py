"""Measurement files whose figures need no words of their own: every scalar is a row, every series over time a line.

A list of objects with one of the keys of `TIMES` is a timeline; each of its other numbers is a chart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtests.axes import show
from loadtests.charts import Plot, Series, plot
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table

TIMES = dict.fromkeys(("at_s", "second", "seconds", "time_s", "t_s"), "s") | {"minute": "minutes", "minutes": "minutes"}
FEW = 60
"""Points that are marked one by one."""


def tables(path: Path) -> dict[str, str]:
    """Markdown: every scalar with its place in the file as its name."""
    return {"all": markdown_table(["measured", "result"], [[name, value] for name, value in _scalars(read_fields(path))])}


def _scalars(found: Fields, place: str = "") -> Iterator[tuple[str, str]]:
    for key in found:
        name, value = f"{place}{key}".replace("_", " "), found.raw(key)
        if isinstance(value, dict):
            yield from _scalars(found.fields(key), f"{name}, ")
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, int | float):
            yield name, show(found.number(key))
        elif isinstance(value, str):
            yield name, value


def _timelines(found: Fields) -> Iterator[str]:
    for key in found:
        value = found.raw(key)
        if not isinstance(value, list) or len(value) < 2 or not isinstance(value[0], dict):
            continue
        rows = found.rows(key)
        time = next((name for name in TIMES if all(name in row for row in rows)), None)
        if time is None:
            continue
        for name in (
            name for name in rows[0] if name != time and any(_is_number(row.raw(name)) for row in rows if name in row)
        ):
            points = [(row.number(time), row.number(name)) for row in rows if name in row]
            words = name.replace("_", " ")
            series = Series(words, points, marked=len(points) < FEW)
            yield plot(Plot(f"{key.replace('_', ' ')}: {words}", TIMES[time], words, [series]))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def section(path: Path, name: str, words: str) -> Section:
    """Its series as lines, its scalars as a table."""
    return Section(name, [words], list(_timelines(read_fields(path))), [(name, tables(path)["all"])])
