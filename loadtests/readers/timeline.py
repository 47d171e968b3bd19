"""A run second by second: the key `timeline` that a measurement file may hold, and its charts.

    "timeline": [{"t": 0, "per_s": 30, "p50_ms": 20.1, "p99_ms": 48.0, "failed": 0, "event": "promote"}, ...]

`t` is the second since the run began, `per_s` its good answers and `failed` the requests that were not answered well; latencies
are left out where nothing was answered. `event` names what happened in that second, where something did.
"""

from __future__ import annotations

from loadtests.charts import Event, Plot, Series, plot
from loadtests.readers.fields import Fields


def timeline_charts(found: Fields, title: str) -> list[str]:
    """Latency and answers over time, with the events; nothing where the file has no timeline."""
    rows = found.rows("timeline") if "timeline" in found else []
    if not rows:
        return []
    events = [Event(row.text("event"), row.number("t")) for row in rows if "event" in row]
    latency = [_line(rows, f"p{point}", f"p{point}_ms") for point in (50, 99)]
    answers = [_line(rows, "good answers", "per_s"), _line(rows, "failed", "failed")]
    drawn = [("latency, ms", latency), ("requests/s", answers)]
    return [
        plot(Plot(f"{title}, second by second: {unit.partition(',')[0]}", "s", unit, series, events=events))
        for unit, series in drawn
        if any(line.points for line in series)
    ]


def _line(rows: list[Fields], name: str, key: str) -> Series:
    return Series(name, [(row.number("t"), row.number(key)) for row in rows if key in row], marked=False)
