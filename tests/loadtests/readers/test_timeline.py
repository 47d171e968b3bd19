"""The second by second charts of a measurement file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from loadtests.charts import Plot
from loadtests.readers import overload, swap
from loadtests.readers.fields import Fields
from loadtests.readers.timeline import timeline_charts
from tests.loadtests.readers.test_readers import written


@pytest.mark.parametrize(("name", "kind"), [("chaos-swap.json", swap), ("overload.json", overload)])
def test_a_timeline_is_drawn_where_there_is_one(tmp_path: Path, name: str, kind: Any) -> None:
    with_it = kind.section(written(tmp_path, name)).charts
    without = kind.section(written(tmp_path, name, timeline=None)).charts
    latency, answers = (chart for chart in with_it if "second by second" in chart)
    assert len(with_it) == len(without) + 2
    assert latency.count('class="event"') == answers.count('class="event"') == 3
    assert ">promote 0<" in latency or ">load 0<" in latency  # the event's name stands beside its line
    (p50,) = re.findall(r'data-series="0"><polyline class="line" points="([^"]+)"', latency)
    assert len(p50.split()) == 19  # of 20 seconds: in one nothing was answered


def test_entries_of_a_long_run_are_drawn_with_their_distance_and_counts_as_rates() -> None:
    rows = [{"t": t, "per_s": 10.0, "failed": 30, "refused": 60, "p50_ms": 5.0, "p99_ms": 9.0} for t in (0, 3, 6)]
    drawn: list[Plot] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadtests.readers.timeline.plot", drawn.append)
        timeline_charts(Fields({"timeline": rows}, "made"), "Swaps")
    assert [chart.title for chart in drawn] == ["Swaps, every 3 s: latency", "Swaps, every 3 s: requests/s"]
    assert {line.name: line.points[-1] for line in drawn[1].series} == {
        "good answers": (6, 10.0),
        "failed": (6, 10.0),
        "refused": (6, 20.0),
    }


def test_many_events_are_rows_of_marks_above_the_curves_by_kind() -> None:
    names = ["publish", "refused bit flips", "rollback, refused NaN weights"]
    rows = [{"t": t, "per_s": 10.0, "failed": 0, "p50_ms": 5.0, "p99_ms": 9.0, "event": names[t % 3]} for t in range(600)]
    latency, answers = timeline_charts(Fields({"timeline": rows}, "made"), "Swaps")
    for chart in (latency, answers):
        assert chart.count('class="mark"') == 800
        assert 'class="event"' not in chart and 'class="happened"' not in chart
        legend = re.findall(r"</svg>([^<]+)</button>", chart)
        assert legend[2:] == ["publish", "refused", "rollback"]
        assert "<title>refused: refused NaN weights, 599 s</title>" in chart
    heights = [float(y) for y in re.findall(r"<circle[^>]* cy=\"([\d.]+)\"|M[\d.]+ ([\d.]+)l", latency) for y in y if y]
    (p99,) = re.findall(r'data-series="1"><polyline class="line" points="([^"]+)"', latency)
    assert max(heights) < min(float(pair.split(",")[1]) for pair in p99.split())
