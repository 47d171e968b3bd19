"""`loadtests.result` and `loadtests.estimates`: the figures of a recording, what is refused and what is not met."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.command import Failure
from loadtests.estimates import Estimate, between_answers, estimate_percentile, estimate_rate, find_drift
from loadtests.record import Recording, Sample
from loadtests.result import Ceiling, Result, summarise
from loadtests.scenario import Criteria, Load, Scenario

SCENARIO = Scenario(texts=Path("t.jsonl"), load=Load(kind="open", rate=100), texts_per_request=2, duration_s=10)
CEILING = Ceiling(requests_per_s=1000, how="measured")


def recording(latencies_s: list[float], *, errors: dict[int, str] | None = None, cpu_s: float = 1.0) -> Recording:
    """Ten seconds of evenly spaced requests, with a warm-up request before them."""
    gap, errors = 10 / len(latencies_s), errors or {}
    samples = [Sample(-1, -1, -0.5, "old-1", "")]
    for number, latency in enumerate(latencies_s):
        error = errors.get(number, "")
        samples.append(Sample(number * gap, number * gap + 0.001, number * gap + latency, "" if error else "r-1", error))
    return Recording(10, samples, {kind: f"first {kind}" for kind in errors.values()}, cpu_s)


def summary(seen: Recording, **changes: Any) -> Result:
    options: dict[str, Any] = {"name": "n", "ceiling": CEILING, "machine": {"cores": 2}}
    return summarise(seen, SCENARIO, **(options | changes))


GOOD = summary(recording([0.01] * 1000))


def test_the_figures_are_of_the_window_and_of_good_answers() -> None:
    result = summary(recording([0.01] * 990 + [0.03] * 10, errors={0: "Rejected", 1: "TimedOut", 2: "Rejected"}))
    assert (result.requests, result.errors) == (1000, {"Rejected": 2, "TimedOut": 1})
    assert result.error_rate == pytest.approx(0.003)
    assert result.messages == {"Rejected": "first Rejected", "TimedOut": "first TimedOut"}
    assert result.releases == {"r-1": 997}  # the warm-up's is not counted
    assert result.requests_per_s.value == pytest.approx(99.7, abs=0.4)
    assert result.texts_per_s == pytest.approx(2 * result.requests_per_s.value)
    assert result.quantiles_ms["50"] == pytest.approx(10)
    assert result.quantiles_ms["100"] == pytest.approx(30)
    assert result.p99_ms.low <= result.p99_ms.value <= result.p99_ms.high
    assert result.lateness_p99_ms == pytest.approx(1)
    assert result.generator_cpu_share == pytest.approx(0.1)
    assert sum(row["good"] for row in result.timeline) == 997
    assert result.timeline[0]["failed"] == 3
    assert result.timeline[9]["p99_ms"] == pytest.approx(30)


def test_a_good_result_is_neither_refused_nor_unmet_and_is_json() -> None:
    assert GOOD.refusals == []
    assert GOOD.unmet(Criteria(p99_ms=10.1, requests_per_s=99)) == []
    value = json.loads(json.dumps(GOOD.to_json(), allow_nan=False))
    assert value["p99_ms"]["value"] == pytest.approx(10)
    assert value["scenario"]["load"]["rate"] == 100


def test_without_a_good_answer_there_is_no_result() -> None:
    with pytest.raises(Failure, match="none of 2 requests was answered: Unavailable: first Unavailable"):
        summary(recording([0.1, 0.1], errors={0: "Unavailable", 1: "Unavailable"}))
    with pytest.raises(Failure, match="no answer came within the window of 10 s, only later ones"):
        summary(recording([11.0] * 20))
    with pytest.raises(Failure, match="none of 0 requests was answered: none was due within the window"):
        summary(Recording(10))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"requests": 99}, "99 requests were measured, and a p99 needs 100"),
        ({"generator_cpu_share": 0.71}, "the generator used 71% of a core, allowed 70%"),
        ({"requests_per_s": Estimate(801, 1, 2)}, r"801 requests/s are 80% of what the generator reaches .* \(1000\)"),
        ({"drift": "latency goes up"}, "not steady: latency goes up; a longer warmup_s"),
    ],
)
def test_a_poor_measurement_is_refused(change: dict[str, Any], said: str) -> None:
    (refusal,) = dataclasses.replace(GOOD, **change).refusals
    assert re.search(said, refusal)


def test_a_ceiling_that_was_not_measured_refuses_nothing() -> None:
    assert dataclasses.replace(GOOD, ceiling=Ceiling(requests_per_s=None, how="no token")).refusals == []


def test_each_criterion_that_is_not_met_is_told_with_its_figures() -> None:
    result = summary(recording([0.01] * 1000, errors={5: "Rejected"}))
    found = result.unmet(Criteria(p99_ms=9, error_rate=0.0005, requests_per_s=200))
    assert len(found) == 3
    assert found[0] == "error rate 0.100% (1 Rejected), allowed 0.050%"
    assert found[1].startswith("p99 10 ms (95 % interval 10 to 10), allowed 9")
    assert "wanted 200" in found[2]
    assert result.unmet(Criteria(error_rate=0.001)) == []
    assert dataclasses.replace(GOOD, p99_ms=Estimate(float("nan"), 0, 0)).unmet(Criteria(p99_ms=1)) != []


def test_a_closed_loop_says_that_it_hides_queueing() -> None:
    closed = dataclasses.replace(SCENARIO, load=Load(kind="closed", users=3))
    result = summarise(recording([0.01] * 1000), closed, name="n", ceiling=CEILING, machine={})
    assert "hide queueing" in result.note
    assert "hide queueing" not in GOOD.note


def test_the_interval_of_p99_holds_the_truth_for_independent_latencies() -> None:
    held = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        latencies = generator.exponential(10, size=2000)
        times = np.sort(generator.uniform(0, 10, size=2000))
        estimate = estimate_percentile(times, latencies, duration_s=10, percent=99)
        held += estimate.low <= 10 * np.log(100) <= estimate.high
    assert held >= 17  # of 20; 19 are expected


def test_the_interval_of_a_rate_is_as_wide_as_a_poisson_process_varies() -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 10, size=1000))
    estimate = estimate_rate(times, duration_s=10)
    assert estimate.value == 100
    assert estimate.high - estimate.low == pytest.approx(4 * np.sqrt(1000) / 10, rel=0.5)


@pytest.mark.parametrize("begin", [0.0, 0.3, 0.89])
def test_a_rate_is_that_of_the_bursts_wherever_the_window_begins(begin: float) -> None:
    done_s = np.repeat(np.arange(10) * 0.9, 32) - begin  # 32 answers every 0.9 s
    times_s, duration_s = between_answers(done_s, duration_s=4.0)
    assert len(times_s) / duration_s == pytest.approx(32 / 0.9)
    assert (times_s.min(), times_s.max() < duration_s) == (0.0, True)


def test_without_an_answer_after_it_the_window_counts_as_it_is() -> None:
    times_s, duration_s = between_answers(np.array([-1.0, 1.0, 3.0]), duration_s=4.0)
    assert (times_s.tolist(), duration_s) == ([1.0, 3.0], 4.0)


def test_answers_that_come_together_widen_the_interval() -> None:
    even, bursts = np.arange(1000) / 100, np.repeat(np.arange(10), 100) + 0.5
    widths = [estimate_rate(times, duration_s=10) for times in (even, bursts)]
    assert widths[1].high - widths[1].low > 5 * (widths[0].high - widths[0].low)


def drift(latencies_ms: Any, done_s: Any = None) -> str:
    due_s = np.linspace(0, 10, 1000, endpoint=False)
    return find_drift(due_s, np.asarray(latencies_ms, float), due_s if done_s is None else done_s, duration_s=10)


def test_a_steady_run_and_one_with_a_slow_moment_do_not_drift() -> None:
    noise = np.random.default_rng(0).exponential(10, size=1000)
    assert drift(noise) == ""
    noise[800:840] += 500
    assert drift(noise) == ""


def test_a_growing_latency_and_a_falling_throughput_are_drift() -> None:
    assert drift(np.linspace(10, 200, 1000)).startswith("latency goes from 5")
    falling = 10 * np.linspace(0, 1, 1000) ** 2
    assert "throughput goes from" in drift(np.full(1000, 10.0), falling)
    assert drift(np.linspace(10, 11, 1000)) == ""  # a trend, and one that does not matter


def test_a_window_that_is_mostly_empty_is_not_steady() -> None:
    times = np.linspace(0, 2, 100)
    assert "only 7 of 30 pieces" in find_drift(times, np.ones(100), times, duration_s=10)
