"""peers.json, of `python -m loadtests.peers`: goals, servers, open loops; throughput against latency, memory, cold start."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtests.charts import Bar, Bars, Plot, Series, bars, plot
from loadtests.page import Section
from loadtests.readers.fields import Fields, read_fields
from loadtests.readers.histogram import histogram
from loadtests.readers.markdown import markdown_table

OURS = "ours"
SHOWN = ("1", "8", "32")
"""In flight, in the table of servers; charts show 64 as well."""
DRAWN = 3
"""Histograms lie on each other: ours, and those of the fastest peers."""
USERS = (*SHOWN, "64")
SHARES = ("0.5", "0.8")
PERCENTS = ("0", "1", "5", "10", "25", "50", "75", "90", "95", "99", "99.9", "100")
MIB = 2**20
MIN_ANSWERS = 100
"""Fewer have no 99th percentile."""
UNSTEADY = " ~"
"""Behind latencies that went up or down within the window."""


class Comparison:
    """The file, with medians over its rounds at hand."""

    def __init__(self, content: Fields) -> None:
        self.content = content
        self._rounds = [found for _, found in content.fields("rounds").every()]
        order = [name for name in content.fields("servers") if any(name in each for each in self._rounds)]
        peaks = {name: self.middle(name, lambda found: found.number("peak_per_s")) or 0.0 for name in order}
        self.names = sorted(order, key=lambda name: (name != OURS, -peaks[name]))
        """Measured servers, ours first, then by throughput."""

    def each(self, name: str) -> list[Fields]:
        """Every round's result of a server."""
        return [found.fields(name) for found in self._rounds if name in found]

    def middle(self, name: str, get: Callable[[Fields], float | None]) -> float | None:
        """The median over the rounds; None where there is no such figure."""
        values = [value for found in self.each(name) if (value := get(found)) is not None]
        return statistics.median(values) if values else None

    def facts(self, name: str) -> Fields:
        """Title, settings and versions."""
        return self.content.fields("servers").fields(name)

    def title(self, name: str) -> str:
        """A server in words."""
        facts = self.facts(name)
        return f"{facts.text('title')}, {facts.text('settings')}" if name != OURS else f"{facts.text('title')} (ours)"


def _point(group: str, key: str, figure: str) -> Callable[[Fields], float | None]:
    def get(found: Fields) -> float | None:
        points = found.fields(group)
        return _figure(points.fields(key), figure) if key in points else None

    return get


def _figure(point: Fields, figure: str) -> float | None:
    """None where the load gave none, or too few answers for it."""
    if figure == "p99_ms" and figure in point and point.number("requests") * (1 - point.number("error_rate")) < MIN_ANSWERS:
        return None
    return point.number(figure) if figure in point else None


def _waits(found: Comparison, name: str, group: str, key: str) -> str:
    """p50 and p99 under a load, marked where a round of it was not steady."""
    p50, p99 = (found.middle(name, _point(group, key, f"p{point}_ms")) for point in (50, 99))
    return f"{_show(p50)} / {_show(p99)}" + (UNSTEADY if any(_drifted(each, group, key) for each in found.each(name)) else "")


def _drifted(found: Fields, group: str, key: str) -> bool:
    points = found.fields(group)
    return key in points and "drift" in points.fields(key) and points.fields(key).text("drift") != ""


def _overload(figure: str) -> Callable[[Fields], float | None]:
    return lambda found: found.fields("overload").number(figure) if figure in found.fields("overload") else None


def _show(value: float | None, form: str = ".1f", unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def tables(path: Path) -> dict[str, str]:
    """Markdown by name: goals, servers, open, alone, versions, failed."""
    found = Comparison(read_fields(path))
    parts = {"goals": _goals(found.content), "servers": _servers(found), "open": _open(found), "alone": _alone(found)}
    parts |= {"versions": _versions(found), "failed": _failed(found)}
    return {name: part for name, part in parts.items() if part}


def _goals(content: Fields) -> str:
    rows = []
    for goal in content.rows("goals"):
        unit = {"x": "x", "ms": " ms"}[goal.text("unit")]
        wanted = f"{'>=' if goal.flag('at_least') else '<='} {goal.number('wanted'):g}{unit}"
        if "median" not in goal:
            rows.append([goal.text("goal"), wanted, "not measured", "", ""])
            continue
        low, middle, high = (f"{goal.number(name):.2f}" for name in ("min", "median", "max"))
        against = ", ".join(str(name) for name in goal.raw("against"))
        spread = f"{middle}{unit}" + (f" ({low} to {high})" if low != high else "")
        rows.append([goal.text("goal"), wanted, spread, "met" if goal.flag("met") else "missed", against])
    return markdown_table(["goal", "wanted", "found", "verdict", "against"], rows) if rows else ""


def _servers(found: Comparison) -> str:
    header = ["server", "requests/s", *(f"p50 / p99 ms, {users} in flight" for users in SHOWN)]
    header += ["labels equal", "memory MiB", "first answer s", "good/s at 2x", "their p50 ms", "errors at 2x"]
    rows = []
    for name in found.names:
        waits = [_waits(found, name, "closed", users) for users in SHOWN]
        labels = found.each(name)[-1].fields("labels")
        memory = found.middle(name, lambda each: each.number("memory_bytes") / MIB)
        failed = found.middle(name, _overload("error_rate"))
        rows.append(
            [
                found.title(name),
                _show(found.middle(name, lambda each: each.number("peak_per_s"))),
                *waits,
                f"{labels.number('equal'):.0f} of {labels.number('texts'):.0f}",
                _show(memory, ",.0f"),
                _show(found.middle(name, lambda each: each.number("cold_start_s"))),
                _show(found.middle(name, _overload("requests_per_s"))),
                _show(found.middle(name, _overload("p50_ms")), ",.0f"),
                _show(failed, ".1%"),
            ]
        )
    return markdown_table(header, rows)


def _alone(found: Comparison) -> str:
    """Ours, request by request: where the time of a lone one goes."""
    rows = []
    for name in ("total", "tokenizer compute", "engine compute", "beyond", "queues"):
        medians = [_p50_alone(found, which, name) for which in ("alone", "alone_http")]
        if any(median is not None for median in medians):
            rows.append(
                ["beyond, of it in queues" if name == "queues" else name, *(_show(each, ".2f", " ms") for each in medians)]
            )
    return markdown_table(["one request in flight, p50", "gRPC", "HTTP"], rows) if rows else ""


def _p50_alone(found: Comparison, which: str, part: str) -> float | None:
    """The median over all turns of all rounds; None where there is no such figure."""
    turns = [turn.fields("p50_ms") for each in found.each(OURS) if which in each for turn in each.rows(which)]
    values = [turn.number(part) for turn in turns if part in turn]
    return statistics.median(values) if values else None


def _open(found: Comparison) -> str:
    header = ["server"]
    for share in SHARES:
        header += [f"requests/s at {float(share):.0%}", "p50 / p99 ms"]
    rows = []
    for name in found.names:
        cells = [found.title(name)]
        for share in SHARES:
            cells += [_show(found.middle(name, _point("open", share, "rate"))), _waits(found, name, "open", share)]
        rows.append([*cells, "" if name == OURS else _waits(found, OURS, "at", name)])
    return markdown_table([*header, "ours at its 80 %, p50 / p99 ms"], rows)


def _versions(found: Comparison) -> str:
    rows = []
    for name in found.names:
        versions = found.facts(name).fields("versions")
        rows.append([found.title(name), ", ".join(f"{package} {versions.text(package)}" for package in versions)])
    return markdown_table(["server", "versions"], rows, right_from=2)


def section(path: Path) -> Section:
    """The comparison as the report shows it."""
    content = read_fields(path)
    found = Comparison(content)
    machine = content.fields("machine")
    words = [
        f"{machine.text('cpu')}, {machine.number('cores'):.0f} cores, {content.text('date')}: every server of the same merged "
        "checkpoint, one after the other, with the generator on the same cores. Closed loops hide queueing: read their "
        "throughput; open loops count from the time at which a request was due. "
        f"{UNSTEADY.strip()}: not steady; -: fewer than {MIN_ANSWERS} answers.",
    ]
    drawn = [_curves(found), *_distributions(found), *_sizes(found), *_stages(found)] if found.names else []
    captions = {"goals": "Goals", "servers": "Servers, medians over the rounds", "open": "Open loop"}
    captions |= {"alone": "Ours, one request at a time", "versions": "Versions", "failed": "Not measured"}
    shown = [(captions[name], markdown) for name, markdown in tables(path).items()]
    return Section("Peers", words, drawn, shown)


def _failed(found: Comparison) -> str:
    """What was not measured, with the first and the last line of the reason."""
    failed, described = found.content.fields("failed"), found.content.fields("servers")
    rows = [
        [
            found.title(name) if name in described else name,
            " ... ".join(dict.fromkeys(failed.text(name).splitlines()[place] for place in (0, -1))),
        ]
        for name in failed
    ]
    return markdown_table(["not measured", "because"], rows, right_from=2) if rows else ""


def _curves(found: Comparison) -> str:
    series = []
    for name in found.names:
        points, tips = [], []
        for users in USERS:
            rate, p99 = (found.middle(name, _point("closed", users, figure)) for figure in ("requests_per_s", "p99_ms"))
            if rate and p99:
                points.append((rate, p99))
                tips.append(f"{users} in flight: {rate:.1f} requests/s, p99 {p99:.1f} ms")
        if points:
            series.append(Series(found.title(name), points, tips))
    return plot(Plot("Throughput against latency, 1, 8, 32 and 64 in flight", "requests/s", "p99, ms", series, log_y=True))


def _distributions(found: Comparison) -> list[str]:
    series, measured = [], []
    for name in found.names:
        quantiles = found.each(name)[-1].fields("open").fields("0.8")
        if "quantiles_ms" in quantiles:
            values = quantiles.fields("quantiles_ms")
            measured.append((found.title(name), values))
            points = [(values.number(percent), float(percent)) for percent in PERCENTS[:-2]]
            series.append(Series(found.title(name), points, [f"{y:g} % within {x:.1f} ms" for x, y in points], marked=False))
    if not measured:
        return []
    load = "open loop at 80 % of each one's own peak"
    cumulative = Plot(f"Latency, cumulative: {load}", "ms", "% of requests within", series, log_x=True)
    few = f"Latency histogram of the first {len(measured[:DRAWN])}" if len(measured) > DRAWN else "Latency histogram"
    return [histogram(f"{few}: {load}", measured[:DRAWN]), plot(cumulative)]


def _sizes(found: Comparison) -> list[str]:
    figures: Sequence[tuple[str, str, Callable[[Fields], float]]] = (
        ("Throughput at saturation", "requests/s", lambda each: each.number("peak_per_s")),
        ("Memory after the load", "MiB, proportional set size", lambda each: each.number("memory_bytes") / MIB),
        ("From start to first answer", "s", lambda each: each.number("cold_start_s")),
    )
    charts = []
    for title, unit, get in figures:
        rows = []
        for name in found.names:
            values = [get(each) for each in found.each(name)]
            spread = (min(values), max(values)) if len(values) > 1 else None
            rows.append(Bar(found.title(name), [("ours" if name == OURS else "peers", statistics.median(values))], spread))
        charts.append(bars(Bars(title, unit, rows, names=("ours", "peers"))))
    return charts


def _stages(found: Comparison) -> list[str]:
    rows = []
    for users in USERS:
        closed = [each.fields("closed") for each in found.each(OURS)] if OURS in found.names else []
        points = [each.fields(users) for each in closed if users in each]
        if points and "stages" in points[-1]:
            means = points[-1].fields("stages").fields("mean_ms")
            rows.append(Bar(f"{users} in flight", [(stage, means.number(stage)) for stage in means]))
    return [bars(Bars("Where our time goes", "mean ms of a request", rows))] if rows else []
