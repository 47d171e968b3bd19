"""`loadtests.locust_run`: its command lines and verdicts; `test_served` has it run for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from loadtests.locust_run import LocustRun, commands, main, unmet
from loadtests.scenario import Criteria, Load, Scenario

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = Scenario(texts=Path("t.jsonl"), load=Load(kind="closed", users=8, shape="step"), warmup_s=2, duration_s=20)
SUMMARY: dict[str, Any] = {
    "requests": 1000,
    "failures": 5,
    "errors": {"Rejected('full')": 5},
    "p99_ms": 90,
    "requests_per_s": 50.0,
    "generator_cpu_share": 0.5,
}


def test_the_command_lines_of_master_and_worker_belong_together() -> None:
    options = LocustRun(scenario=Path("s.toml"), workers=3, protocol="http", url="10.0.0.1:8000")
    master, worker = commands(options, SCENARIO, port=5000, summary=Path("out.json"))
    assert master[master.index("--expect-workers") + 1] == "3"
    assert master[master.index("--master-bind-port") + 1] == worker[worker.index("--master-port") + 1] == "5000"
    for command in (master, worker):
        assert "HttpUser" in command and command[command.index("--host") + 1] == "10.0.0.1:8000"


def test_a_summary_within_the_criteria_passes() -> None:
    assert unmet(SUMMARY, Criteria(p99_ms=90, error_rate=0.005, requests_per_s=50)) == []


@pytest.mark.parametrize(
    ("change", "criteria", "said"),
    [
        ({}, Criteria(), "error rate 0.500% (5 x Rejected('full')), allowed 0.000%"),
        ({"failures": 0}, Criteria(p99_ms=89), "p99 90 ms, allowed 89"),
        ({"failures": 0}, Criteria(requests_per_s=51), "50 requests/s, wanted 51"),
        ({"failures": 0, "generator_cpu_share": 0.8}, Criteria(), "the busiest worker used 80% of a core"),
    ],
)
def test_each_thing_that_is_wrong_is_told(change: dict[str, Any], criteria: Criteria, said: str) -> None:
    (found,) = unmet(SUMMARY | change, criteria)
    assert found.startswith(said)


def test_workers_and_open_loads_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--workers is 0"):
        LocustRun(scenario=Path("s.toml"), workers=0)
    (tmp_path / "s.toml").write_text('texts = "t"\n[load]\nkind = "open"\nrate = 1\n', encoding="utf-8")
    with pytest.raises(UsageError, match="is an open load, and Locust's users wait for answers"):
        main(LocustRun(scenario=tmp_path / "s.toml"))
