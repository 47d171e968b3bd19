"""`loadtests.figures`: the report's charts as SVG files of their own; the project's own are checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from contract.command import Failure, UsageError
from loadtests.charts import Bar, Bars, bars
from loadtests.figures import FIGURES, Figures, draw, main, standalone, store

ROOT = Path(__file__).resolve().parents[2]
MEASUREMENTS = ROOT / "docs" / "measurements"
NAME = "{http://www.w3.org/2000/svg}"


def test_a_chart_of_the_report_becomes_a_whole_svg_document() -> None:
    document = standalone(bars(Bars("Speed & size", "texts/s", [Bar("a < b", [("ours", 12.5)]), Bar("c", [("peers", 3.0)])])))
    root = ElementTree.fromstring(document)  # noqa: S314 - our own
    assert next(element.text for element in root.iter(f"{NAME}title")) == "Speed & size"
    assert {"Speed & size", "a < b", "12.5", "texts/s"} <= {element.text for element in root.iter(f"{NAME}text")}
    assert len([element for element in root.iter(f"{NAME}rect") if element.get("class") != "back"]) == 2


def test_a_chart_is_the_same_document_whatever_was_drawn_before_it() -> None:
    chart = Bars("Speed", "texts/s", [Bar("a", [("ours", 1.0)])])
    assert standalone(bars(chart)) == standalone(bars(chart))


def test_what_is_no_chart_is_refused() -> None:
    with pytest.raises(ValueError, match="no chart: '<p>words</p>'"):
        standalone("<p>words</p>")


def test_written_figures_pass_the_check_and_a_changed_one_is_named_and_left(tmp_path: Path) -> None:
    documents = {"a.svg": "<svg/>", "b.svg": "<svg>b</svg>"}
    store(documents, tmp_path / "new")
    store(documents, tmp_path / "new", check=True)
    (tmp_path / "new" / "b.svg").write_text("<svg>c</svg>")
    with pytest.raises(Failure, match=r"stale in \S*new: b\.svg; python -m loadtests\.figures writes them"):
        store(documents, tmp_path / "new", check=True)
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == documents | {"b.svg": "<svg>c</svg>"}


def test_a_missing_measurement_is_said(tmp_path: Path) -> None:
    shutil.copy(MEASUREMENTS / "peers.json", tmp_path)
    with pytest.raises(UsageError, match="'Training speed' of Training"):
        draw(tmp_path)


def test_the_figures_of_the_project_are_those_of_its_measurements_and_shown_in_the_readme() -> None:
    main(Figures(measurements=MEASUREMENTS, output=ROOT / "docs" / "figures", check=True))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/figures/{name}.svg" in readme for name in FIGURES)
