"""`loadtests.report`: one file of everything; in a real browser each chart is drawn and nothing is asked of the network."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from contract.files import write_json
from loadtests.report import Report, report
from tests.loadtests import made
from tests.loadtests.browser import CHROMIUM, chromium

ROOT = Path(__file__).resolve().parents[2]
BOXES = """[...document.querySelectorAll('.chart > svg')].map(svg => {
  const box = svg.getBoundingClientRect(), ink = [...svg.querySelectorAll('polyline, .mark > :not(title)')];
  return {name: svg.querySelector('title').textContent, width: box.width, height: box.height, ink: ink.length,
          drawn: ink.filter(part => { const b = part.getBBox(); return b.width > 0 || b.height > 0; }).length,
          texts: [...svg.querySelectorAll('text')].filter(text => { const b = text.getBoundingClientRect();
            return b.width > 0 && (b.left < -1 || b.right > innerWidth + 1); }).length};
})"""


@pytest.fixture(scope="module", params=["made up", "measured"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of made-up files of every kind and of the repository's own demo; and that of all its own measurements."""
    output = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    if request.param == "measured":
        report(Report(measurements=ROOT / "docs" / "measurements", output=output))
        return output
    folder = made.make_measurements(tmp_path_factory.mktemp("measurements"))
    shutil.copy(ROOT / "docs" / "measurements" / "demo-docstrings.json", folder)
    report(Report(measurements=folder, output=output))
    return output


def test_it_says_what_is_missing_and_what_makes_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lead = text[text.index("<header>") : text.index("</header>")]  # of the real files none may be missing
    assert "peers.json" not in lead
    present = 'id="training"' in text
    assert ("training.json (<code>make bench-train</code>)" in lead) is not present


def test_an_unknown_file_stops_it_and_nothing_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / "mystery.json", {})
    with pytest.raises(UsageError, match=r"mystery\.json is no measurement"):
        report(Report(measurements=tmp_path, output=tmp_path / "out.html"))
    assert not (tmp_path / "out.html").exists()


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    report(Report(measurements=tmp_path, output=tmp_path / "out.html"))
    assert "Not there: peers.json" in (tmp_path / "out.html").read_text(encoding="utf-8")


async def look(page: Path, profile: Path) -> dict[str, Any]:
    """Everything that the tests below ask, in one browser."""
    async with chromium(profile) as tab:
        await tab.scheme("light")
        await tab.open(page.as_uri(), width=1280)
        found: dict[str, Any] = {"desktop": await tab.value(BOXES)}
        background = "getComputedStyle(document.body).backgroundColor"
        found["light"] = await tab.value(background)
        await tab.scheme("dark")
        found["dark"] = await tab.value(background)
        found["toggled"] = await tab.value(f"document.getElementById('theme').click(), {background}")
        legend = "document.querySelector('.chart .key')"
        shown = f"{legend}.closest('figure').querySelectorAll(':scope > svg [data-series=\"0\"]:not(.off)').length"
        found["series"] = [await tab.value(shown), await tab.value(f"{legend}.click(), {shown}")]
        found["copied"] = await tab.value(
            "new Promise(done => { navigator.clipboard.writeText = async text => done(text); "
            "document.querySelector('[data-copy]').click(); })"
        )
        await tab.open(page.as_uri(), width=360, height=740)
        found["phone"] = await tab.value(BOXES)
        found["overflow"] = await tab.value("document.documentElement.scrollWidth - innerWidth")
        found["complaints"], found["requests"] = tab.complaints(), tab.requests()
        return found


@pytest.fixture(scope="module")
def looked(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    tried = subprocess.run([CHROMIUM, "--version"], capture_output=True, text=True, check=False, timeout=200)
    if tried.returncode:  # as Ubuntu's, which only says that there is a snap
        pytest.skip(f"{CHROMIUM} does not start: {tried.stdout}{tried.stderr}")
    return asyncio.run(look(page, tmp_path_factory.mktemp("profile")))


def test_nothing_is_asked_of_the_network(page: Path, looked: dict[str, Any]) -> None:
    assert {address.split(":")[0] for address in looked["requests"]} <= {"file", "data"}
    assert page.as_uri() in looked["requests"]


def test_the_console_stays_empty(looked: dict[str, Any]) -> None:
    assert looked["complaints"] == []


@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_every_chart_is_drawn(looked: dict[str, Any], screen: str) -> None:
    charts = looked[screen]
    assert len(charts) > 20
    assert [chart["name"] for chart in charts if min(chart["width"], chart["height"]) < 40] == []
    assert [chart["name"] for chart in charts if not 0 < chart["ink"] == chart["drawn"]] == []


def test_a_phone_shows_it_without_scrolling_sideways(looked: dict[str, Any]) -> None:
    assert looked["overflow"] <= 0
    assert [chart["name"] for chart in looked["phone"] if chart["texts"]] == []


def test_dark_and_light_follow_the_system_and_the_button(looked: dict[str, Any]) -> None:
    assert looked["light"] != looked["dark"]
    assert looked["toggled"] == looked["light"]


def test_a_legend_key_hides_its_series(looked: dict[str, Any]) -> None:
    before, after = looked["series"]
    assert before > 0 and after == 0


def test_the_copy_button_gives_the_markdown(looked: dict[str, Any]) -> None:
    assert looked["copied"].startswith("| goal ")
