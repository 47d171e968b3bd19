"""demo-*.json, of `make demo`: the table is `demo.table`'s; latency and quality are drawn."""

from __future__ import annotations

from pathlib import Path

from loadtests.charts import Bar, Bars, bars
from loadtests.page import Section
from loadtests.readers.commands import table_of
from loadtests.readers.fields import Fields, read_fields

PERCENTS = ("p50", "p95", "p99")


def tables(path: Path) -> dict[str, str]:
    """Markdown, as the README shows it."""
    return {"all": table_of("demo.table", str(path.resolve()))}


def section(paths: list[Path]) -> Section:
    """All demos together."""
    runs = {path.stem.removeprefix("demo-"): read_fields(path) for path in paths}
    rows = [
        Bar(f"{name}, {protocol}, {percent}", [(percent, found.fields(f"latency_{protocol}").number(f"{percent}_ms"))])
        for name, found in runs.items()
        for protocol in ("grpc", "http")
        for percent in PERCENTS
    ]
    shares = [Bar(name, [("", 100 * _accuracy(found))]) for name, found in runs.items()]
    return Section(
        "Demo",
        ["`make demo`: texts to a served classifier, every step of it, on this machine."],
        [bars(Bars("Latency, one request in flight", "ms", rows)), bars(Bars("Accuracy on the test part", "%", shares))],
        [
            (f"{path.stem.removeprefix('demo-')}, {runs[path.stem.removeprefix('demo-')].text('date')}", tables(path)["all"])
            for path in paths
        ],
    )


def _accuracy(found: Fields) -> float:
    return found.fields("run").fields("test").number("accuracy")
