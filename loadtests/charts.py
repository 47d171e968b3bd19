"""Charts as inline SVG that takes its colours from the page: lines, points and horizontal bars.

Each chart names itself (`title`, `desc`), each mark carries its figures in a `title` of its own, and colour is never the only
sign: a series has a marker and a dash as well. Widths are such that a phone shows the text at about 10 pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from loadtests.axes import Axis, fitted, show

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 12, 42
COLOURS = 10
MARKERS = ("circle", "square", "diamond", "triangle", "cross")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
NAMED_EVENTS = 8
"""Up to so many have their names in the drawing; more would lie on each other, and say them when they are pointed at."""
LETTER = 6.5
"""About as wide is a letter."""
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Series:
    """One line, or one colour of bars."""

    name: str
    points: Sequence[tuple[float, float]]
    tips: Sequence[str] = ()
    """What each point says when it is pointed at; x and y when left out."""
    joined: bool = True
    """Draw the line between the points."""
    marked: bool = True
    """Draw the points."""


@dataclass(frozen=True)
class Event:
    """A moment, or a span of time, that a timeline shades and names."""

    name: str
    start: float
    end: float | None = None


@dataclass(frozen=True)
class Plot:
    """What a chart of lines shows."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = True
    """Linear axes begin at 0."""
    events: Sequence[Event] = ()
    goal: float | None = None
    """A horizontal line, e.g. a promised p99."""


@dataclass(frozen=True)
class Bar:
    """One bar: `parts` stand one after the other, by series."""

    label: str
    parts: Sequence[tuple[str, float]]
    spread: tuple[float, float] | None = None
    """Least and greatest of what was measured."""
    note: str = ""
    """Written at its end; the sum of the parts when left out."""


@dataclass(frozen=True)
class Bars:
    """What a chart of bars shows."""

    title: str
    unit: str
    bars: Sequence[Bar]
    goal: float | None = None
    names: Sequence[str] = field(default=())
    """Order of the series; as met when left out."""


def plot(chart: Plot) -> str:
    """The chart as a figure.

    Raises:
        ValueError: no point to draw, or one that the axes cannot hold.
    """
    points = [point for series in chart.series for point in series.points]
    across = [x for x, _ in points] + [event.start for event in chart.events]
    x = fitted(across, LEFT, WIDTH - RIGHT, log=chart.log_x, from_zero=chart.from_zero)
    heights = [y for _, y in points] + ([] if chart.goal is None else [chart.goal])
    y = fitted(heights, HEIGHT - BOTTOM, TOP, log=chart.log_y, from_zero=chart.from_zero)
    drawn = [_event(event, x) for event in chart.events] + [_grid(x, y, chart)]
    if chart.goal is not None:
        drawn.append(_line((x.start, y.place(chart.goal)), (x.end, y.place(chart.goal)), "goal", f"goal {show(chart.goal)}"))
    drawn += [_series(series, number, x, y) for number, series in enumerate(chart.series)]
    drawn += _event_names(chart.events, x)
    names = [series.name for series in chart.series]
    said = f"{chart.y} against {chart.x}: {', '.join(names)}"
    return _figure(chart.title, said, names if len(names) > 1 else [], "\n".join(drawn), HEIGHT, marked=True)


def bars(chart: Bars) -> str:
    """The chart as a figure. Raises ValueError without bars."""
    row, gap, top = 16, 22, 6
    height = top + len(chart.bars) * (row + gap) + 38
    ends = [sum(value for _, value in bar.parts) for bar in chart.bars] + [bar.spread[1] for bar in chart.bars if bar.spread]
    x = fitted([*ends, chart.goal] if chart.goal is not None else ends, 6, WIDTH - 64)
    names = list(chart.names) or list(dict.fromkeys(name for bar in chart.bars for name, _ in bar.parts))
    floor = height - 36
    drawn = [_tick(x.place(value), floor, value, top) for value in x.ticks()]
    drawn.append(
        f'<text class="name" x="{(x.start + x.end) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(chart.unit)}</text>'
    )
    for number, bar in enumerate(chart.bars):
        drawn.append(_bar(bar, x, top + number * (row + gap) + gap - 4, row, names))
    if chart.goal is not None:
        drawn.append(_line((x.place(chart.goal), top), (x.place(chart.goal), floor), "goal", f"goal {show(chart.goal)}"))
    said = f"{chart.unit}: " + "; ".join(f"{bar.label} {show(sum(value for _, value in bar.parts))}" for bar in chart.bars)
    return _figure(chart.title, said, names if len(names) > 1 else [], "\n".join(drawn), height, marked=False)


def _figure(title: str, said: str, names: Sequence[str], drawn: str, height: int, *, marked: bool) -> str:
    number = next(_NUMBERS)
    legend = "".join(
        f'<button type="button" class="key" data-series="{place}" aria-pressed="true">{_key(place, marked)}{escape(name)}'
        "</button>"
        for place, name in enumerate(names)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="c{number}t c{number}d">'
        f'<title id="c{number}t">{escape(title)}</title><desc id="c{number}d">{escape(said)}</desc>\n{drawn}\n</svg>'
        + (f'<div class="legend">{legend}</div>' if legend else "")
        + "</figure>"
    )


def _key(place: int, marked: bool) -> str:
    mark = _marker(place, 8, 6) if marked else '<rect width="12" height="12" rx="2"/>'
    return f'<svg class="s{place % COLOURS}" width="16" height="12" viewBox="0 0 16 12" aria-hidden="true">{mark}</svg>'


def _series(series: Series, number: int, x: Axis, y: Axis) -> str:
    places = [(x.place(across), y.place(up)) for across, up in series.points]
    parts = []
    if series.joined and len(places) > 1:
        dash = DASHES[number // len(MARKERS) % len(DASHES)]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        parts.append(f'<polyline class="line" points="{path}"{f" stroke-dasharray={dash!r}" if dash else ""}/>')
    if series.marked:
        tips = series.tips or [f"{show(across)}, {show(up)}" for across, up in series.points]
        for (across, up), tip in zip(places, tips, strict=True):
            said = escape(f"{series.name}: {tip}")
            parts.append(f'<g class="mark"><title>{said}</title>{_marker(number, across, up)}</g>')
    return f'<g class="s{number % COLOURS}" data-series="{number}">{"".join(parts)}</g>'


def _marker(number: int, x: float, y: float) -> str:
    kind, size = MARKERS[number % len(MARKERS)], 4.0
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    if kind == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    paths = {
        "diamond": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        "triangle": f"M{x:.1f} {y - 5:.1f}l5 9h-10z",
        "cross": f"M{x - 4:.1f} {y - 1.2:.1f}h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
    }
    return f'<path d="{paths[kind]}"/>'


def _bar(bar: Bar, x: Axis, top: int, row: int, names: Sequence[str]) -> str:
    parts, start = [], x.place(0)
    for name, value in bar.parts:
        place, width = names.index(name), x.place(value) - x.place(0)
        tip = escape(f"{bar.label}, {name}: {show(value)}" if len(names) > 1 else f"{bar.label}: {show(value)}")
        parts.append(
            f'<g class="s{place % COLOURS} mark" data-series="{place}"><title>{tip}</title>'
            f'<rect x="{start:.1f}" y="{top}" width="{max(width, 0.5):.1f}" height="{row}" rx="2"/></g>'
        )
        start += width
    if bar.spread:
        low, high, middle = x.place(bar.spread[0]), x.place(bar.spread[1]), top + row / 2
        parts.append(
            f'<path class="spread" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 3}v6M{high:.1f} {middle - 3}v6"/>'
        )
    note = bar.note or show(sum(value for _, value in bar.parts))
    end = max([start, x.place(bar.spread[1])] if bar.spread else [start])
    parts.append(f'<text class="value" x="{end + 5:.1f}" y="{top + row - 4}">{escape(note)}</text>')
    return f'<text class="label" x="{x.start}" y="{top - 4}">{escape(bar.label)}</text>{"".join(parts)}'


def _grid(x: Axis, y: Axis, chart: Plot) -> str:
    rows = [
        f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y.place(value):.1f}" y2="{y.place(value):.1f}"/>'
        f'<text x="{x.start - 6}" y="{y.place(value) + 4:.1f}" text-anchor="end">{show(value)}</text>'
        for value in y.ticks()
    ]
    columns = [_tick(x.place(value), y.start, value, y.end) for value in x.ticks()]
    return "".join(
        [
            *rows,
            *columns,
            _name((x.start + x.end) / 2, HEIGHT - 4, chart.x),
            _name(11, (y.start + y.end) / 2, chart.y, turned=True),
        ]
    )


def _name(x: float, y: float, text: str, *, turned: bool = False) -> str:
    turn = " rotate(-90)" if turned else ""
    return f'<text class="name" transform="translate({x:.0f} {y:.0f}){turn}" text-anchor="middle">{escape(text)}</text>'


def _tick(x: float, floor: float, value: float, top: float) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{floor}"/>'
        f'<text x="{x:.1f}" y="{floor + 14}" text-anchor="middle">{show(value)}</text>'
    )


def _line(start: tuple[float, float], end: tuple[float, float], kind: str, tip: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<g><title>{escape(tip)}</title><line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/></g>'


def _event_names(events: Sequence[Event], x: Axis) -> list[str]:
    """Each in the first row that is free there; right of its line, or left of it where it would leave the drawing."""
    if len(events) > NAMED_EVENTS:
        return []
    drawn, ends = [], [0.0]
    for event in sorted(events, key=lambda event: event.start):
        place, width = x.place(event.start), LETTER * len(event.name)
        fits = place + 3 + width < WIDTH
        row = next((row for row, end in enumerate(ends) if end <= (place if fits else place - width)), len(ends))
        ends[row : row + 1] = [place + width if fits else place]
        at = f'x="{place + 3:.1f}"' if fits else f'x="{place - 3:.1f}" text-anchor="end"'
        drawn.append(f'<text class="happened" {at} y="{TOP + 10 + 13 * row}">{escape(event.name)}</text>')
    return drawn


def _event(event: Event, x: Axis) -> str:
    start = x.place(event.start)
    if event.end is None:
        return _line((start, TOP), (start, HEIGHT - BOTTOM), "event", event.name)
    width = max(x.place(event.end) - start, 1.0)
    return (
        f'<g><title>{escape(event.name)}</title><rect class="span" x="{start:.1f}" y="{TOP}" width="{width:.1f}" '
        f'height="{HEIGHT - BOTTOM - TOP}"/></g>'
    )
