"""`loadtests.run`: what it prints and writes, and what makes its exit code 1; the measuring itself is in `test_served`."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from contract.command import Failure, UsageError
from contract.files import read_json, write_json_lines
from loadtests.export import Export
from loadtests.locust_run import LocustRun
from loadtests.measure import measure, read_requests
from loadtests.result import Result
from loadtests.run import Run, main
from loadtests.scenario import Load, Scenario
from loadtests.search import Search
from loadtests.stages import StagesOptions
from tests.loadtests.test_result import GOOD

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    lines = ['texts = "t.jsonl"', "[load]", 'kind = "open"', "rate = 100", "[criteria]", "p99_ms = 50"]
    (tmp_path / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "mine.toml"


def run(scenario: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Run the command over a planted result; what it was called with."""
    called: dict[str, Any] = {}

    def planted(scenario: Scenario, **options: Any) -> Result:
        called.update(options, scenario=scenario)
        return dataclasses.replace(GOOD, **changes)

    monkeypatch.setattr("loadtests.run.measure", planted)
    main(Run(scenario=scenario, output=scenario.with_name("result.json")))
    return called


def test_a_run_that_passes_prints_and_writes_its_figures(
    scenario: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = run(scenario, monkeypatch)
    assert (called["url"], called["operator"], called["name"]) == ("127.0.0.1:8001", None, "mine")
    said = capsys.readouterr().out
    assert "p99 10 ms (10 to 10; 95 % intervals)" in said
    assert "answered by r-1" in said
    assert "reaches 1000 requests/s against a null model" in said
    written = read_json(scenario.with_name("result.json"))
    assert (written["refusals"], written["unmet"], written["requests"]) == ([], [], 1000)


def test_criteria_that_are_not_met_are_a_failure_with_the_figures(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match=r"criteria are not met:\n  error rate 0\.500% \(5 Rejected\), allowed 0\.000%"):
        run(scenario, monkeypatch, errors={"Rejected": 5}, messages={"Rejected": "full"}, error_rate=0.005)
    assert read_json(scenario.with_name("result.json"))["unmet"] != []


def test_a_poor_measurement_is_a_failure_before_any_criterion_is(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match=r"says nothing about the server:\n  the generator used 95% of a core, allowed 70%"):
        run(scenario, monkeypatch, generator_cpu_share=0.95, error_rate=1.0)


def test_the_texts_are_grouped_into_requests(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "t.jsonl", [{"body": f"text {number}"} for number in range(7)])
    scenario = Scenario(texts=tmp_path / "t.jsonl", column="body", texts_per_request=3, load=Load(kind="closed", users=1))
    assert [len(texts) for texts in read_requests(scenario)] == [3, 3]
    with pytest.raises(UsageError, match=r"t\.jsonl holds 7 texts; texts_per_request is 8"):
        read_requests(dataclasses.replace(scenario, texts_per_request=8))


def test_a_shape_is_for_locust_and_a_text_that_no_server_takes_is_named(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "t.jsonl", [{"text": "x" * 200_000}])
    scenario = Scenario(texts=tmp_path / "t.jsonl", load=Load(kind="closed", users=1, shape="step"))
    with pytest.raises(UsageError, match=r"t\.jsonl: text 0 has 200000 bytes"):
        measure(scenario, url="127.0.0.1:1", operator=None, name="n")


@pytest.mark.parametrize("options", [Run, StagesOptions, Search, Export, LocustRun], ids=lambda options: options.__name__)
def test_help_explains_every_option(options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(options, prog="p", args=["--help"])
    said = capsys.readouterr().out
    assert all(f"--{field.name.replace('_', '-')}" in said for field in dataclasses.fields(options) if field.name != "scenario")


def test_the_command_ends_with_2_and_names_a_missing_scenario(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.run", str(tmp_path / "absent.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot read the scenario {tmp_path / 'absent.toml'}")
