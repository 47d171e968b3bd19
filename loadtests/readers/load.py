"""load-*.json, of `python -m loadtests.run --output`: one scenario each; second by second, stages, and the distribution."""

from __future__ import annotations

from pathlib import Path

from contract.command import UsageError
from loadtests.charts import Bar, Bars, Plot, Series, bars, plot
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.histogram import histogram
from loadtests.readers.markdown import markdown_table

SCHEMA = 1
PERCENTS = ("0", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9", "100")


def read_result(path: Path) -> Fields:
    """A result of this schema. Raises UsageError for another."""
    found = read_fields(path)
    if found.number("schema") != SCHEMA:
        raise UsageError(f"{path} has schema {found.number('schema'):g}, and {SCHEMA} is read here; measure again")
    return found


def tables(path: Path) -> dict[str, str]:
    """Markdown: one line; and `stages`, where the time goes, if the server's counters were read."""
    found = read_result(path)
    parts = {"all": _table([found])}
    if (stages := _stages(found)) is not None:
        means, total = stages.fields("mean_ms"), stages.number("total_ms")
        rows = [[stage, f"{means.number(stage):.2f} ms", f"{means.number(stage) / total:.0%}"] for stage in means]
        rows.append(["total", f"{total:.2f} ms", "100%"])
        parts["stages"] = markdown_table([f"{found.text('name')}, mean of a request", "time", "share"], rows)
    return parts


def _stages(found: Fields) -> Fields | None:
    """Where the time went, if the server's counters were read."""
    return found.fields("stages") if "stages" in found and "mean_ms" in found.fields("stages") else None


def _table(results: list[Fields]) -> str:
    header = [
        "scenario",
        "loop",
        "requests/s",
        "p50 ms",
        "p99 ms (95 % interval)",
        "failed",
        "generator, of a core",
        "refused because",
    ]
    rows = []
    for found in results:
        rate, p99, quantiles = found.fields("requests_per_s"), found.fields("p99_ms"), found.fields("quantiles_ms")
        refusals = [str(reason) for reason in found.raw("refusals")]
        rows.append(
            [
                found.text("name"),
                found.text("loop"),
                f"{rate.number('value'):.1f} ({rate.number('low'):.1f} to {rate.number('high'):.1f})",
                f"{quantiles.number('50'):.1f}",
                f"{p99.number('value'):.1f} ({p99.number('low'):.1f} to {p99.number('high'):.1f})",
                f"{found.number('error_rate'):.2%}",
                f"{found.number('generator_cpu_share'):.0%}",
                "; ".join(refusals) or "-",
            ]
        )
    return markdown_table(header, rows, right_from=2)


def section(paths: list[Path]) -> Section:
    """All scenarios together."""
    results = [read_result(path) for path in paths]
    distribution = [
        Series(
            found.text("name"),
            [(max(found.fields("quantiles_ms").number(percent), 0.01), float(percent)) for percent in PERCENTS],
            marked=False,
        )
        for found in results
    ]
    charts = [
        histogram("Latency histogram", [(found.text("name"), found.fields("quantiles_ms")) for found in results]),
        plot(Plot("Latency, cumulative", "ms", "% of requests within", distribution, log_x=True)),
    ]
    charts += [_timeline(found) for found in results if found.raw("timeline")]
    staged = [(found.text("name"), stages) for found in results if (stages := _stages(found)) is not None]
    if staged:
        rows = []
        for name, stages in staged:
            means = stages.fields("mean_ms")
            rows.append(Bar(name, [(stage, means.number(stage)) for stage in means]))
        charts.append(bars(Bars("Where the time goes", "mean ms of a request", rows)))
    notes = list(dict.fromkeys(f"{found.text('note').capitalize()}." for found in results))
    for name, stages in staged:
        notes.append(f"{name}: the knob to turn is {stages.text('knob')}; {stages.text('reason')}.")
    return Section("Load", notes, charts, [("Scenarios", _table(results))])


def _timeline(found: Fields) -> str:
    seconds = found.rows("timeline")
    series = [
        Series(f"p{point}", [(row.number("second"), row.number(f"p{point}_ms")) for row in seconds], marked=False)
        for point in (50, 99)
    ]
    return plot(Plot(f"{found.text('name')}, second by second", "s", "latency, ms", series))
