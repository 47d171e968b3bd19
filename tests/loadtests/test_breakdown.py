"""`loadtests.breakdown`: stages out of planted counters, and the knob that each planted bottleneck names."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from contract.command import Failure
from loadtests.breakdown import STAGES, Probe, Stages, join_stages, judge, stage_table
from loadtests.record import Recording, Sample

EVEN = Stages(
    client_ms=0.1,
    wire_ms=1,
    tokenizer_queue_ms=1,
    tokenizer_compute_ms=1,
    engine_queue_ms=1,
    engine_compute_ms=1,
    ensemble_ms=0.5,
    engine_batch=4,
    machine_busy=0.9,
    generator_cpu_share=0.1,
    batch_delay_ms=0,
)


@pytest.mark.parametrize(
    ("planted", "knob", "said"),
    [
        ({"generator_cpu_share": 0.9, "engine_compute_ms": 50}, "client", "used 90% of a core"),
        ({"client_ms": 5}, "client", "sent 5 ms late"),
        ({"wire_ms": 20}, "network", "wire is 20 of 24.6 ms"),
        ({"ensemble_ms": 20}, "network", "ensemble is 20 of"),
        ({"tokenizer_queue_ms": 20}, "tokenizer", "raise the instances of bert_tokenizer"),
        ({"tokenizer_compute_ms": 20}, "tokenizer", "a faster tokenizer"),
        ({"engine_queue_ms": 20, "machine_busy": 0.4}, "instances", "raise the instances of bert_engine"),
        ({"engine_queue_ms": 20, "engine_batch": 1.2}, "batch", "1.2 requests share a run: raise max_batch_size"),
        ({"engine_queue_ms": 20, "batch_delay_ms": 15}, "batch", "the batcher waits 15 ms: lower"),
        ({"engine_queue_ms": 20}, "engine", "a faster engine or a lower precision"),
        ({"engine_compute_ms": 20, "machine_busy": 0.5}, "threads", "raise the engine's threads"),
        ({"engine_compute_ms": 20}, "engine", "the cores are 90% busy"),
    ],
)
def test_a_planted_bottleneck_names_its_knob(planted: dict[str, float], knob: str, said: str) -> None:
    verdict = judge(dataclasses.replace(EVEN, **planted))
    assert (verdict.knob, said in verdict.reason) == (knob, True), verdict


def counters(**by_model: dict[str, float]) -> Any:
    return {f"bert_{name}": values for name, values in by_model.items()}


BEFORE = counters(
    classifier={"request_success": 10, "request_duration_us": 5_000},
    tokenizer={"request_success": 10, "request_duration_us": 1_000, "queue_duration_us": 500},
    engine={"request_success": 10, "request_duration_us": 4_000, "queue_duration_us": 10, "exec_count": 10},
)
AFTER = counters(
    classifier={"request_success": 110, "request_duration_us": 5_000 + 100 * 12_000},
    tokenizer={"request_success": 110, "request_duration_us": 1_000 + 100 * 3_000, "queue_duration_us": 500 + 100 * 1_000},
    engine={
        "request_success": 110,
        "request_duration_us": 4_000 + 100 * 8_000,
        "queue_duration_us": 10 + 100 * 6_000,
        "exec_count": 35,
    },
)


def recording() -> Recording:
    """100 answers of 15 ms within the window, sent 1 ms late; one failure and two answers outside it are not to count."""
    samples = [Sample(number / 100, number / 100 + 0.001, number / 100 + 0.016, "r", "") for number in range(98)]
    samples += [Sample(-0.01, -0.009, 0.006, "r", ""), Sample(-0.005, -0.004, 0.011, "r", "")]
    samples += [Sample(0.5, 0.5, 0.9, "", "Rejected"), Sample(-1, -1, -0.1, "r", ""), Sample(0.99, 0.99, 1.9, "r", "")]
    return Recording(1.0, samples, cpu_s=0.2)


def test_the_stages_are_the_counters_gains_and_the_generators_times() -> None:
    stages = join_stages(recording(), Probe(BEFORE, 100.0), Probe(AFTER, 101.5), cores=2, batch_delay_ms=0)
    assert stages.by_stage == pytest.approx(
        {
            "client": 1.0,
            "wire": 3.0,  # 15 of the round trip, 12 in the server
            "tokenizer queue": 1.0,
            "tokenizer compute": 2.0,
            "engine queue": 6.0,
            "engine compute": 2.0,
            "ensemble": 1.0,
        }
    )
    assert stages.total_ms == pytest.approx(16)
    assert (stages.engine_batch, stages.machine_busy, stages.generator_cpu_share) == pytest.approx((4.0, 0.75, 0.2))


def test_counters_of_another_server_are_refused() -> None:
    with pytest.raises(Failure, match="100 answers came in, and bert_classifier counts none"):
        join_stages(recording(), Probe(AFTER, 0), Probe(AFTER, 1), cores=2, batch_delay_ms=0)
    with pytest.raises(Failure, match="0 answers came in"):
        join_stages(Recording(1.0), Probe(BEFORE, 0), Probe(AFTER, 1), cores=2, batch_delay_ms=0)


def test_the_table_shows_every_stage_and_the_verdict() -> None:
    value = json.loads(json.dumps(dataclasses.replace(EVEN, engine_compute_ms=20).to_json()))
    table = stage_table(value)
    assert [line.split("  ")[1].strip() for line in table.splitlines()[: len(STAGES)]] == list(STAGES)
    assert table.count("#" * 40) == 1
    assert table.splitlines()[-1].startswith("turn: engine: engine compute is 20 of 24.6 ms")
