"""`loadtests.trial`: a load that is broken off as soon as it has failed, on a clock that jumps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from clients import Rejected
from loadtests.deployment import Setting
from loadtests.record import Recording, Sample
from loadtests.scenario import Criteria, Load, Scenario
from loadtests.trial import Broken, run_bounded, run_trial, server_cpu_s
from tests.loadtests.virtual import Server, run_virtually

SCENARIO = Scenario(
    texts=Path("t.jsonl"),
    load=Load(kind="open", rate=100, arrivals="constant"),
    criteria=Criteria(p99_ms=50),
    warmup_s=1,
    duration_s=10,
)


def bounded(server: dict[str, Any], fail_at: int | None = None) -> tuple[Recording | Broken, int]:
    async def run() -> tuple[Recording | Broken, int]:
        simulated = Server(**server)
        simulated.fail = lambda number: Rejected("full") if number == fail_at else None
        return await run_bounded(simulated.send, [("a",)], SCENARIO), len(simulated.sent)

    return run_virtually(run())


def test_a_load_within_the_bound_is_measured_to_its_end() -> None:
    recording, sent = bounded({"service_s": 0.009})
    assert isinstance(recording, Recording)
    assert len(recording.samples) == sent == 1100


def test_it_is_broken_off_once_more_than_one_in_a_hundred_is_late_answered_or_not() -> None:
    broken, sent = bounded({"service_s": 0.001, "frozen": (3, 100)})  # frozen two seconds into the window
    assert isinstance(broken, Broken)
    assert broken.reason == "11 requests took longer than 50 ms"
    assert broken.after == pytest.approx(0.2 + 0.005 + 0.01, abs=0.005)
    assert sent < 350


def test_what_is_late_in_the_warm_up_does_not_count() -> None:
    recording, _ = bounded({"service_s": 0.001, "frozen": (0, 0.9)})
    assert isinstance(recording, Recording)


def test_ten_late_requests_of_a_thousand_are_within_a_p99() -> None:
    recording, _ = bounded({"service_s": 0.0001, "workers": 99, "frozen": (3, 3.13)})
    assert isinstance(recording, Recording)
    late = [sample for sample in recording.samples if sample.intended_s >= 0 and sample.done_s - sample.intended_s > 0.05]
    assert 1 <= len(late) <= 10


def test_a_failed_request_breaks_it_off() -> None:
    broken, sent = bounded({"service_s": 0.001}, fail_at=300)
    assert isinstance(broken, Broken)
    assert (broken.reason, sent) == ("Rejected: full", 301)


@pytest.mark.parametrize(("count", "slower", "said"), [(50, 0.0, "50 requests were measured"), (1000, 0.03, "not steady")])
def test_a_window_that_says_nothing_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, slower: float, said: str
) -> None:
    due = [10 * number / count for number in range(count)]
    samples = [Sample(at, at, at + 0.01 + slower * at / 10, "r", "") for at in due]
    recording = Recording(10, samples, cpu_s=1.0, probes=[0.0, 10.0])

    def run(load: Any) -> Recording:
        load.close()
        return recording

    monkeypatch.setattr("loadtests.trial.apply", lambda setting, repository: None)
    monkeypatch.setattr("loadtests.trial.served", lambda repository: contextlib.nullcontext(None))
    monkeypatch.setattr("loadtests.trial.run_precisely", run)
    (tmp_path / "t.txt").write_text("a text\n", encoding="utf-8")
    scenario = dataclasses.replace(SCENARIO, texts=tmp_path / "t.txt")
    trial = run_trial(Setting(release="r", instances=1, threads=1), tmp_path, scenario)
    assert not trial.outcome.feasible and said in trial.reason


def test_the_cpu_of_a_server_is_counted_with_its_processes() -> None:
    assert server_cpu_s(os.getpid()) >= sum(os.times()[:2]) * 0.5
