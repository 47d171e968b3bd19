"""`loadtests.charts`: every point is drawn where it belongs, says its figures, and nothing in a name breaks the page."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from loadtests.charts import HEIGHT, LEFT, LETTER, RIGHT, WIDTH, Bar, Bars, Event, Plot, Series, bars, plot

NASTY = 'a<b>&"c"'


def parse(figure: str) -> ET.Element:
    """Valid XML is valid HTML here: no void elements are used."""
    return ET.fromstring(figure)  # noqa: S314 - our own


def svg_of(figure: str) -> ET.Element:
    found = parse(figure).find("svg")
    assert found is not None
    return found


def line(*points: tuple[float, float], name: str = "one", **options: Any) -> Series:
    return Series(name, points, **options)


def test_the_ends_of_the_axes_are_the_corners_of_the_chart() -> None:
    svg = svg_of(plot(Plot("Title", "x", "y", [line((0, 0), (10, 100))])))
    (path,) = svg.iter("polyline")
    (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in path.attrib["points"].split())
    assert (x1, x2) == (LEFT, WIDTH - RIGHT)
    assert y1 > y2


def test_each_point_says_its_figures() -> None:
    svg = svg_of(plot(Plot("T", "x", "y", [line((1, 2), (3, 4)), Series("two", [(5, 6)], ["five and six"])])))
    assert [title.text for title in svg.iter("title")] == ["T", "one: 1, 2", "one: 3, 4", "two: five and six"]


def test_a_chart_names_and_describes_itself() -> None:
    svg = svg_of(plot(Plot("Title", "time", "speed", [line((1, 2))])))
    titled, described = svg.attrib["aria-labelledby"].split()
    found = {element.attrib["id"]: element.text for element in svg if "id" in element.attrib}
    assert svg.attrib["role"] == "img"
    assert (found[titled], found[described]) == ("Title", "speed against time: one")


def test_ids_are_unique_across_charts() -> None:
    charts = [plot(Plot("T", "x", "y", [line((1, 2))])) for _ in range(3)]
    ids = re.findall(r' id="([^"]+)"', "".join(charts))
    assert len(ids) == len(set(ids)) == 6


def test_names_cannot_break_the_page() -> None:
    chart = plot(Plot(NASTY, NASTY, NASTY, [line((1, 2), name=NASTY), line((3, 4))], events=[Event(NASTY, 1)]))
    assert parse(chart).findtext("figcaption") == NASTY
    assert parse(bars(Bars(NASTY, NASTY, [Bar(NASTY, [(NASTY, 1), ("b", 2)], note=NASTY)]))).findtext("figcaption") == NASTY


def test_the_legend_names_several_series_and_not_a_single_one() -> None:
    two = parse(plot(Plot("T", "x", "y", [line((1, 2)), line((3, 4), name="two")])))
    assert ["".join(key.itertext()) for key in two.iter("button")] == ["one", "two"]
    assert list(parse(plot(Plot("T", "x", "y", [line((1, 2))]))).iter("button")) == []


def test_series_differ_by_more_than_colour() -> None:
    svg = svg_of(plot(Plot("T", "x", "y", [line((1, 1), (2, number), name=str(number)) for number in range(12)])))
    looks = set()
    for group in svg.findall("g[@data-series]"):
        mark = group.find("g")
        path = group.find("polyline")
        assert mark is not None and path is not None
        shape = mark[1]
        looks.add((shape.tag, re.sub(r"^M[\d. -]+", "", shape.attrib.get("d", "")), path.attrib.get("stroke-dasharray")))
    assert len(looks) == 12


def test_a_line_without_points_and_points_without_a_line() -> None:
    svg = svg_of(plot(Plot("T", "x", "y", [line((1, 2), (3, 4), marked=False), line((1, 2), (3, 4), joined=False)])))
    first, second = svg.findall("g[@data-series]")
    assert (len(list(first.iter("polyline"))), len(first.findall("g"))) == (1, 0)
    assert (len(list(second.iter("polyline"))), len(second.findall("g"))) == (0, 2)


def test_events_and_goals_are_drawn() -> None:
    chart = plot(Plot("T", "s", "ms", [line((0, 1), (10, 5))], events=[Event("swap", 4), Event("stop", 2, 6)], goal=8))
    svg = svg_of(chart)
    titles = [title.text for title in svg.iter("title")]
    assert {"swap", "stop", "goal 8"} <= set(titles)
    (span,) = (rect for rect in svg.iter("rect") if rect.attrib.get("class") == "span")
    assert float(span.attrib["width"]) == pytest.approx(0.4 * (WIDTH - RIGHT - LEFT), abs=0.1)


def test_names_of_events_lie_neither_on_each_other_nor_outside() -> None:
    events = [Event("refused truncated engine", 9.5), Event("publish", 2), Event("rollback", 2.5), Event("promote", 6)]
    svg = svg_of(plot(Plot("T", "s", "ms", [line((0, 1), (10, 5))], events=events)))
    names = {text.text: text.attrib for text in svg.iter("text") if text.attrib.get("class") == "happened"}
    assert names["publish"]["y"] == names["promote"]["y"] != names["rollback"]["y"]
    last = names["refused truncated engine"]
    assert last["text-anchor"] == "end"  # of its line, right of which there is no place
    assert last["y"] not in {names["publish"]["y"]}
    (left, right) = (float(names[name]["x"]) for name in ("promote", "refused truncated engine"))
    assert right - LETTER * len("refused truncated engine") < left + LETTER * len("promote")  # so a row of its own


@pytest.mark.parametrize("series", [[], [Series("none", [])], [line((0, 1))]])
def test_nothing_to_draw_is_refused(series: list[Series]) -> None:
    with pytest.raises(ValueError, match="an axis needs finite values"):
        plot(Plot("T", "x", "y", series, log_x=True))


def test_bars_are_as_long_as_their_values() -> None:
    svg = svg_of(bars(Bars("T", "ms", [Bar("a", [("", 10)]), Bar("b", [("", 20)])])))
    first, second = (float(rect.attrib["width"]) for rect in svg.iter("rect"))
    assert second == pytest.approx(2 * first, rel=0.01)
    texts = [text.text for text in svg.iter("text")]
    assert {"a", "b", "10", "20", "ms"} <= set(texts)


def test_the_parts_of_a_bar_stand_one_after_the_other() -> None:
    svg = svg_of(bars(Bars("T", "ms", [Bar("a", [("x", 10), ("y", 30)])])))
    first, second = svg.iter("rect")
    assert float(second.attrib["x"]) == pytest.approx(float(first.attrib["x"]) + float(first.attrib["width"]), abs=0.11)
    assert [title.text for title in svg.iter("title")][1:] == ["a, x: 10", "a, y: 30"]


def test_a_spread_is_drawn_and_fits() -> None:
    svg = svg_of(bars(Bars("T", "ms", [Bar("a", [("", 10)], (5, 40))], goal=30)))
    (spread,) = (path for path in svg.iter("path") if path.attrib.get("class") == "spread")
    ends = [float(value) for value in re.findall(r"H([\d.]+)|M([\d.]+)", spread.attrib["d"])[0] if value]
    assert ends and max(ends) < WIDTH


def test_all_of_it_lies_within_the_drawing() -> None:
    svg = svg_of(plot(Plot("T", "x", "y", [line((0.5, 30), (700, 0.2))], log_x=True, log_y=True)))
    for circle in svg.iter("circle"):
        assert LEFT <= float(circle.attrib["cx"]) <= WIDTH and 0 <= float(circle.attrib["cy"]) <= HEIGHT
