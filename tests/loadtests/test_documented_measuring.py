"""Every command and path of docs/measuring.md exists, its scenario is one, and its figures are those of the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from loadtests.export import Export
from loadtests.locust_run import LocustRun
from loadtests.result import MAX_CPU_SHARE, MAX_OF_CEILING, MIN_REQUESTS
from loadtests.run import Run
from loadtests.scenario import read_scenario
from loadtests.search import Search
from loadtests.stages import StagesOptions

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
OPTIONS = {"run": Run, "stages": StagesOptions, "locust_run": LocustRun, "search": Search, "export": Export}
COMMANDS = re.findall(r"^```sh\npython -m loadtests\.(\w+) (.*)\n```$", PAGE, re.MULTILINE)


def test_every_command_is_documented() -> None:
    assert {name for name, _ in COMMANDS} == set(OPTIONS)
    assert PAGE.count("```sh") == len(COMMANDS)


@pytest.mark.parametrize(("name", "arguments"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_a_documented_command_is_understood_and_its_scenario_exists(name: str, arguments: str) -> None:
    options: Any = tyro.cli(OPTIONS[name], args=shlex.split(arguments))
    if name != "search":
        assert read_scenario(ROOT / options.scenario).duration_s > 0


def test_the_scenario_on_the_page_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.toml").write_text(block, encoding="utf-8")
    scenario = read_scenario(tmp_path / "page.toml")
    assert (scenario.load.rate, scenario.criteria.p99_ms) == (20, 200)


def test_the_bounds_on_the_page_are_those_of_the_code() -> None:
    page = " ".join(PAGE.split())
    assert f"used more than {MAX_CPU_SHARE:.0%} of a core".replace("%", " %") in page
    assert f"within {MAX_OF_CEILING:.0%} of its own ceiling".replace("%", " %") in page
    assert f"fewer than {MIN_REQUESTS} requests" in page
