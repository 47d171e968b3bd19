"""A request's time, split into stages, and which knob that names: what a generator saw joined with Triton's counters.

All stages are mean milliseconds a request of those answered within the window; what a batch takes counts for each request in
it, since each waits for it. The commands are `loadtests.run` and `loadtests.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil

from contract.command import Failure
from contract.tensors import CLASSIFIER, ENGINE, STEPS, TOKENIZER
from loadtests.operator import Counters, Operator, gain
from loadtests.record import Recording
from loadtests.result import MAX_CPU_SHARE

STAGES = ("client", "wire", "tokenizer queue", "tokenizer compute", "engine queue", "engine compute", "ensemble")
IDLE = 0.7
"""A machine whose cores are busy for less of the time has some left for more instances or threads."""
LATE = 0.25
"""Share of the latency that is the generator's own lateness, above which it is the bottleneck."""
ALONE = 2.0
"""Requests in a mean batch below which the server as good as does not batch."""

BAR = 40
"""Characters of the longest bar."""


@dataclass(frozen=True)
class Probe:
    """What is read as the window begins and ends."""

    counters: Counters
    busy_s: float
    """CPU seconds that all cores together were busy since the machine started."""


def take_probe(operator: Operator) -> Probe:
    """Triton's counters and this machine's processor time."""
    times = psutil.cpu_times()
    return Probe(operator.counters(), sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


@dataclass(frozen=True)
class Verdict:
    """What to change, and why."""

    knob: str
    """client, network, tokenizer, instances, threads, batch or engine."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Mean milliseconds of a request in each stage, and what else the verdict rests on."""

    client_ms: float
    """The generator was late by so much."""
    wire_ms: float
    """Between the generator and the server, and back: network, gRPC, the generator's event loop."""
    tokenizer_queue_ms: float
    tokenizer_compute_ms: float
    engine_queue_ms: float
    engine_compute_ms: float
    ensemble_ms: float
    """In the server and in none of its steps."""
    engine_batch: float
    """Requests that share a run of the engine, on average."""
    machine_busy: float
    """Share of this machine's cores that was busy, by whomever."""
    generator_cpu_share: float
    """Of one core."""
    batch_delay_ms: float
    """For how long the engine's batcher holds a request back to wait for others."""

    @property
    def by_stage(self) -> dict[str, float]:
        """Milliseconds by the names of `STAGES`."""
        return {name: getattr(self, name.replace(" ", "_") + "_ms") for name in STAGES}

    @property
    def total_ms(self) -> float:
        """The sum of the stages: mean latency from the intended time."""
        return sum(self.by_stage.values())

    def to_json(self) -> dict[str, Any]:
        """The stages, what was looked at beside them, and the verdict."""
        verdict = judge(self)
        beside = ("engine_batch", "machine_busy", "generator_cpu_share", "batch_delay_ms")
        return {
            "mean_ms": self.by_stage,
            "total_ms": self.total_ms,
            **{name: getattr(self, name) for name in beside},
            "knob": verdict.knob,
            "reason": verdict.reason,
        }


def join_stages(recording: Recording, before: Probe, after: Probe, *, cores: int, batch_delay_ms: float) -> Stages:
    """The stages of the requests that were answered within the window.

    Raises:
        Failure: the server answered none in it, by its own counters or by the generator's: they are not of the same server.
    """
    window_s = recording.duration_s
    answered = [sample for sample in recording.samples if not sample.error and 0 <= sample.done_s < window_s]
    server = _mean_ms(before.counters, after.counters, CLASSIFIER, "request_duration_us")
    if not answered or server is None:
        raise Failure(f"{len(answered)} answers came in, and {CLASSIFIER} counts none: are url and repository one server?")
    client_ms = sum(sample.sent_s - sample.intended_s for sample in answered) / len(answered) * 1000
    round_trip_ms = sum(sample.done_s - sample.sent_s for sample in answered) / len(answered) * 1000
    parts: dict[str, float] = {}
    for step, name in zip(STEPS, ("tokenizer", "engine"), strict=True):
        whole, queue = (_mean_ms(before.counters, after.counters, step, f"{part}_duration_us") for part in ("request", "queue"))
        parts |= {f"{name}_queue_ms": queue or 0.0, f"{name}_compute_ms": max((whole or 0.0) - (queue or 0.0), 0.0)}
    runs = gain(before.counters, after.counters, ENGINE, "exec_count")
    return Stages(
        client_ms=client_ms,
        wire_ms=max(round_trip_ms - server, 0.0),
        ensemble_ms=max(server - sum(parts.values()), 0.0),
        **parts,
        engine_batch=gain(before.counters, after.counters, ENGINE, "request_success") / runs if runs else 0.0,
        machine_busy=(after.busy_s - before.busy_s) / (window_s * cores),
        generator_cpu_share=recording.cpu_s / window_s,
        batch_delay_ms=batch_delay_ms,
    )


def batch_delay_ms(operator: Operator) -> float:
    """For how long the engine's batcher waits for more requests, out of its configuration."""
    batching = operator.config(ENGINE).get("dynamic_batching") or {}
    return float(batching.get("max_queue_delay_microseconds", 0)) / 1000


def _mean_ms(before: Counters, after: Counters, model: str, name: str) -> float | None:
    """The counter's gain for each answered request; None when there was none."""
    requests = gain(before, after, model, "request_success")
    return gain(before, after, model, name) / requests / 1000 if requests > 0 else None


def judge(stages: Stages) -> Verdict:
    """The knob that shortens the longest stage."""
    if stages.generator_cpu_share > MAX_CPU_SHARE or stages.client_ms > LATE * stages.total_ms:
        used = f"it used {stages.generator_cpu_share:.0%} of a core and sent {stages.client_ms:.3g} ms late"
        return Verdict("client", f"the generator is the limit: {used}; spread the load over processes (loadtests.locust_run)")
    longest = max((name for name in STAGES if name != "client"), key=lambda name: stages.by_stage[name])
    share = f"{longest} is {stages.by_stage[longest]:.4g} of {stages.total_ms:.4g} ms"
    if longest in {"wire", "ensemble"}:
        return Verdict("network", f"{share}: move the caller nearer, send more texts in a request, or give the server threads")
    if longest == "tokenizer queue":
        return Verdict("tokenizer", f"{share}: raise the instances of {TOKENIZER}")
    if longest == "tokenizer compute":
        return Verdict("tokenizer", f"{share}: a faster tokenizer is needed, or shorter texts")
    return _judge_engine(stages, longest, share)


def _judge_engine(stages: Stages, longest: str, share: str) -> Verdict:
    """Engine queue or compute is the longest stage: which of its knobs."""
    busy = f"the cores are {stages.machine_busy:.0%} busy"
    idle = stages.machine_busy < IDLE
    if longest == "engine compute":
        if idle:
            return Verdict("threads", f"{share} and {busy}: raise the engine's threads")
        return Verdict("engine", f"{share} and {busy}: a faster engine or a lower precision is needed, or another machine")
    if stages.engine_queue_ms < 2 * stages.batch_delay_ms:
        return Verdict("batch", f"{share}, and the batcher waits {stages.batch_delay_ms:.3g} ms: lower max_queue_delay")
    if idle:
        return Verdict("instances", f"{share} and {busy}: raise the instances of {ENGINE}")
    if stages.engine_batch < ALONE:
        return Verdict(
            "batch", f"{share}, and {stages.engine_batch:.2g} requests share a run: raise max_batch_size or the delay"
        )
    full = f"{busy}, {stages.engine_batch:.2g} requests share a run"
    return Verdict("engine", f"{share}; {full}: a faster engine or a lower precision is needed, or another machine")


def stage_table(stages: dict[str, Any]) -> str:
    """The stages of a result as lines with bars, and the verdict."""
    longest = max(stages["mean_ms"].values())
    lines = [
        f"  {name:<18}{mean_ms:>9.3f} ms  {'#' * round(BAR * mean_ms / longest) if longest else ''}"
        for name, mean_ms in stages["mean_ms"].items()
    ]
    return "\n".join([*lines, f"  {'mean':<18}{stages['total_ms']:>9.3f} ms", f"turn: {stages['knob']}: {stages['reason']}"])
