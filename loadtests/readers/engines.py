"""engines.json, of `make bench`: milliseconds by shape and engine, beside transformers in the same run."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Bar, Bars, bars
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.markdown import markdown_table

CEILING = "ceiling"


def _shapes(found: Fields) -> list[tuple[str, Fields]]:
    return [(shape, entries) for shape, entries in found.fields("ms").every() if shape != CEILING]


def tables(path: Path) -> dict[str, str]:
    """Markdown: median, least to greatest, and the speed-up over transformers."""
    rows = []
    shapes = _shapes(read_fields(path))
    engines = list(dict.fromkeys(engine for _, entries in shapes for engine in entries))
    for shape, entries in shapes:
        rows.append([shape, *(_cell(entries.fields(engine)) if engine in entries else "-" for engine in engines)])
    return {"all": markdown_table(["batch x tokens", *engines], rows)}


def _cell(entry: Fields) -> str:
    median, low, high = (entry.number(name) for name in ("median", "min", "max"))
    speedup = f", {entry.number('speedup'):.2f}x" if "speedup" in entry else ""
    return f"{median:.1f} ms ({low:.1f} to {high:.1f}){speedup}"


def section(path: Path) -> Section:
    """Our engines beside torch and transformers."""
    found = read_fields(path)
    charts = []
    for shape, entries in _shapes(found):
        rows = [
            Bar(engine, [("", entry.number("median"))], (entry.number("min"), entry.number("max")))
            for engine, entry in entries.every()
        ]
        charts.append(bars(Bars(f"{shape} tokens", "ms a call, median and range", rows)))
    versions = found.fields("versions")
    words = [
        f"The same weights and inputs, one engine after the other in each of {found.number('rounds'):.0f} rounds, "
        f"{found.number('threads'):.0f} threads, {found.text('date')}; "
        + ", ".join(f"{name} {versions.text(name)}" for name in versions)
        + "."
    ]
    return Section("Engines", words, charts, [("Engines, ms a call and speed-up over transformers", tables(path)["all"])])
