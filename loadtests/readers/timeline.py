"""A run second by second: the key `timeline` that a measurement file may hold, and its charts.

    "timeline": [{"t": 0, "per_s": 30, "p50_ms": 20.1, "p99_ms": 48.0, "failed": 0, "event": "promote"}, ...]

`t` is the second since the load began, `per_s` the good answers a second, `failed` how many requests were not answered well and
`refused`, which may be left out, how many were refused on purpose; latencies are left out where nothing was answered. `event`
names what happened, where something did: several names with commas between, the first word of each being its kind. Entries of a
long run may be more than a second apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.charts import NAMED_EVENTS, Event, Plot, Series, plot
from loadtests.readers.fields import Fields

COUNTS = ("failed", "refused")


def timeline_charts(found: Fields, title: str) -> list[str]:
    """Latency and answers over time, with the events; nothing where the file has no timeline."""
    rows = found.rows("timeline") if "timeline" in found else []
    if not rows:
        return []
    step = rows[1].number("t") - rows[0].number("t") if len(rows) > 1 else 1.0
    events = [Event(name, row.number("t")) for row in rows if "event" in row for name in row.text("event").split(", ")]
    latency = [_line(rows, f"p{point}", f"p{point}_ms") for point in (50, 99)]
    answers = [_line(rows, "good answers", "per_s"), *(_line(rows, name, name, step) for name in COUNTS)]
    every = "second by second" if step == 1 else f"every {step:g} s"
    return [
        _chart(f"{title}, {every}: {unit.partition(',')[0]}", unit, [line for line in lines if line.points], events)
        for unit, lines in (("latency, ms", latency), ("requests/s", answers))
        if any(line.points for line in lines)
    ]


def _line(rows: list[Fields], name: str, key: str, step: float = 1.0) -> Series:
    return Series(name, [(row.number("t"), row.number(key) / step) for row in rows if key in row], marked=False)


def _chart(title: str, unit: str, lines: Sequence[Series], events: Sequence[Event]) -> str:
    """Few events are named beside their lines; of many, each kind is a row of marks above the curves, named in the legend."""
    if len(events) <= NAMED_EVENTS:
        return plot(Plot(title, "s", unit, lines, events=events))
    top = max(height for line in lines for _, height in line.points) or 1.0
    marks = []
    for row, kind in enumerate(dict.fromkeys(event.name.split()[0] for event in events)):
        met = [event for event in events if event.name.split()[0] == kind]
        height = top * (1.06 + 0.06 * row)
        tips = [f"{event.name}, {event.start:g} s" for event in met]
        marks.append(Series(kind, [(event.start, height) for event in met], tips, joined=False))
    return plot(Plot(title, "s", unit, [*lines, *marks]))
