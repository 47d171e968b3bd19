"""`loadtests.locust_run`: its command lines; `loadtests.locust_record`: its figures; `test_served` has it run for real."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from clients import Rejected
from contract.command import Failure, UsageError
from loadtests.locust_record import CUT, CUT_S, LocustRecord, order_of_worker
from loadtests.locust_run import LocustRun, commands, main
from loadtests.result import Result
from loadtests.scenario import Load, Scenario

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing listens there
SCENARIO = Scenario(texts=Path("t.jsonl"), load=Load(kind="closed", users=8, shape="step"), warmup_s=2, duration_s=20)


def test_the_command_lines_of_master_and_worker_belong_together() -> None:
    options = LocustRun(scenario=Path("s.toml"), workers=3, protocol="http", url="10.0.0.1:8000")
    master, worker, _ = commands(options, SCENARIO, host="127.0.0.1", port=5000, summary=Path("out.json"))
    assert master[master.index("--expect-workers") + 1] == "3"
    assert master[master.index("--master-bind-port") + 1] == worker[worker.index("--master-port") + 1] == "5000"
    for command in (master, worker):
        assert "HttpUser" in command and command[command.index("--host") + 1] == "10.0.0.1:8000"


def test_workers_of_other_machines_are_waited_for_and_told_where_to_go() -> None:
    options = LocustRun(scenario=Path("s.toml"), workers=2, remote_workers=3, bind=f"{EVERYWHERE}:5557")
    master, worker, elsewhere = commands(options, SCENARIO, host=EVERYWHERE, port=5557, summary=Path("out.json"))
    assert master[master.index("--expect-workers") + 1] == "5"
    assert master[master.index("--master-bind-host") + 1] == EVERYWHERE
    assert worker[worker.index("--master-host") + 1] == "127.0.0.1"
    assert elsewhere[elsewhere.index("--master-host") + 1] == socket.gethostname()
    assert elsewhere[:5] == ["python", "-m", "locust", "-f", "loadtests/locustfile.py,loadtests/shapefile.py"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workers": 0}, "--workers is 0"),
        ({"remote_workers": -1}, "--remote-workers is -1"),
        ({"bind": EVERYWHERE}, "--bind is '0.0.0.0'; it must be host:port"),
        ({"remote_workers": 1}, "--bind is 127.0.0.1:0, which no other machine reaches"),
    ],
)
def test_options_that_cannot_be_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        LocustRun(scenario=Path("s.toml"), **change)


def record(latencies_s: list[float], *, fail: int = 0) -> LocustRecord:
    """One worker's requests, one after the other from the window's begin on; every `fail`th is refused at once."""
    made = LocustRecord()
    made.start()
    at = made.begin
    for number, latency in enumerate(latencies_s):
        refused = fail and number % fail == 0
        made.note(at, 0.0001 if refused else latency, release="r-1", error=Rejected("full") if refused else None)
        at += latency
    return made


def result(*workers: LocustRecord, scenario: Scenario = SCENARIO) -> Result:
    master = LocustRecord()
    master.start()
    master.begin = workers[0].begin
    for number, worker in enumerate(workers):
        told = worker.take()
        master.add(f"worker-{number}", told | {"cpu": (master.begin + 3, 3.0, 0.3 * (number + 1))})
    return master.result(scenario, name="n", machine={"cores": 2})


def test_refusals_are_neither_answers_nor_fast_ones() -> None:
    found = result(record([0.02] * 1000, fail=2))
    assert (found.requests, found.errors, found.messages) == (1000, {"Rejected": 500}, {"Rejected": "full"})
    assert found.requests_per_s.value == pytest.approx(25)  # and not 50
    assert found.texts_per_s == pytest.approx(25)
    assert found.quantiles_ms["1"] == pytest.approx(20)  # and not 0.1
    assert found.error_rate == 0.5


def test_percentiles_are_exact_and_those_of_all_workers_together() -> None:
    found = result(record([0.147] * 130), record([0.1473] * 130))
    assert found.quantiles_ms["25"] == pytest.approx(147)
    assert found.p99_ms.value == pytest.approx(147.3)
    assert found.releases == {"r-1": 260}
    assert found.generator_cpu_share == pytest.approx(0.2)  # the busier one's


def test_warm_up_and_what_was_sent_after_the_window_are_left_out() -> None:
    made = record([0.02] * 1500)  # 30 s
    made.begin += 5
    found = result(made)
    assert found.requests == sum(found.releases.values()) == 1000  # of the window of 20 s


def test_a_request_that_was_cut_off_has_failed_only_if_it_waited_long() -> None:
    made = record([0.02] * 1000)
    made.note_cut(made.begin + 19, CUT_S + 1)
    made.note_cut(made.begin + 19, CUT_S - 1)
    found = result(made)
    assert found.errors == {CUT: 1}


@pytest.mark.parametrize(("shape", "steady"), [("step", True), ("constant", False)])
def test_only_a_load_that_stays_the_same_must_be_steady(shape: Any, steady: bool) -> None:
    scenario = dataclasses.replace(SCENARIO, load=Load(kind="closed", users=1, shape=shape))
    found = result(record([0.01] * 1000 + [0.03] * 334), scenario=scenario)
    assert (found.drift == "") is steady


def test_each_worker_sends_all_texts_in_an_order_of_its_own() -> None:
    texts = [f"text {number}" for number in range(20)]
    orders = [order_of_worker(texts, index) for index in range(3)]
    assert orders[0] == texts and orders == [order_of_worker(texts, index) for index in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert all(sorted(order) == sorted(texts) for order in orders)


def test_without_a_good_answer_there_is_no_result() -> None:
    with pytest.raises(Failure, match="none of 10 requests was answered: Rejected: full"):
        result(record([0.1] * 10, fail=1))


def test_a_result_is_the_same_when_it_is_read_again() -> None:
    found = result(record([0.02] * 1000, fail=2))
    assert Result.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.ceiling.requests_per_s is None and "not measured with Locust" in found.ceiling.how


def test_an_open_load_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('texts = "t"\n[load]\nkind = "open"\nrate = 1\n', encoding="utf-8")
    with pytest.raises(UsageError, match="is an open load, and Locust's users wait for answers"):
        main(LocustRun(scenario=tmp_path / "s.toml"))
