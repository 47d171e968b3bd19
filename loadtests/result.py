"""What a load test found, as `docs/measurements` and the report read it, and whether it may be believed and has passed.

A result is *refused* where the measurement itself was poor (the generator was the limit, the run was not steady, too few
requests): then it says nothing about the server, neither good nor bad. It *fails* where the scenario's criteria are not met.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contract.command import Failure
from loadtests.estimates import Estimate, Float64, between_answers, estimate_percentile, estimate_rate, find_drift
from loadtests.record import Recording
from loadtests.scenario import Criteria, Scenario

SCHEMA = 1
MAX_CPU_SHARE = 0.7
"""Of one core. A busier generator is late by itself, and what it measures is partly itself."""
MAX_OF_CEILING = 0.8
"""Of what the generator reached against a model that does nothing; nearer to it the generator is the limit."""
MIN_REQUESTS = 100
"""Fewer have no 99th percentile."""
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)

CLOSED_NOTE = "closed loop: its latencies hide queueing; read the throughput, and take latency under load from an open loop"
OPEN_NOTE = "open loop: latency counts from the time at which each request should have been sent"


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What the same generator reaches against a model that does nothing."""

    requests_per_s: float | None
    """None where it was not measured."""
    how: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of one scenario. Latencies are those of good answers, in milliseconds; failures are counted beside them."""

    name: str
    """What was measured, for tables: the scenario's file name, an engine, a peer."""
    loop: str
    """open or closed."""
    note: str
    """How the latencies are to be read."""
    requests: int
    """Due within the measured window."""
    requests_per_s: Estimate
    """Good answers, from the first that arrived within the window to the first after it."""
    texts_per_s: float
    p99_ms: Estimate
    mean_ms: float
    quantiles_ms: dict[str, float]
    """The whole distribution, for histograms: latency at 0, 1, 5 ... 99.9, 100 percent."""
    timeline: list[dict[str, float]]
    """Second by second: good answers, failures, p50_ms and p99_ms of the requests due in it (0 where there are none)."""
    error_rate: float
    errors: dict[str, int]
    """Failures by kind."""
    messages: dict[str, str]
    """The first message of each kind."""
    releases: dict[str, int]
    """Good answers by the release that gave them."""
    lateness_p99_ms: float
    """How late the generator itself sent; 0 for a closed loop, which intends no times."""
    generator_cpu_share: float
    """Of one core, within the window."""
    drift: str
    """Why the run was not steady; "" when it was."""
    ceiling: Ceiling
    scenario: dict[str, Any]
    machine: dict[str, Any]
    """Of `loadtests.machine`, taken before the load began."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Where the time went, of `loadtests.stages`; {} where the server's counters were not at hand."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """For `contract.files.write_json`, with what was refused and what was not met."""
        return dataclasses.asdict(self) | {"refusals": self.refusals}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Result:
        """What `to_json` gave, read again."""
        estimates = {name: Estimate(**value[name]) for name in ("requests_per_s", "p99_ms")}
        own = {name: value[name] for name in value if name != "refusals"}
        return cls(**(own | estimates | {"ceiling": Ceiling(**value["ceiling"])}))

    @property
    def refusals(self) -> list[str]:
        """Why this result says nothing about the server; empty when it does."""
        found = []
        if self.requests < MIN_REQUESTS:
            found.append(
                f"{self.requests} requests were measured, and a p99 needs {MIN_REQUESTS}: raise duration_s or the load"
            )
        if self.generator_cpu_share > MAX_CPU_SHARE:
            found.append(
                f"the generator used {self.generator_cpu_share:.0%} of a core, allowed {MAX_CPU_SHARE:.0%}: "
                "lower the load, or spread it over more processes: python -m loadtests.locust_run --workers"
            )
        limit = self.ceiling.requests_per_s
        if limit is not None and self.requests_per_s.value > MAX_OF_CEILING * limit:
            found.append(
                f"{self.requests_per_s.value:.4g} requests/s are {self.requests_per_s.value / limit:.0%} of what the generator "
                f"reaches against a model that does nothing ({limit:.4g}), allowed {MAX_OF_CEILING:.0%}"
            )
        if self.drift:
            found.append(f"not steady: {self.drift}; a longer warmup_s, or a rate below the server's capacity, is needed")
        return found

    def unmet(self, criteria: Criteria) -> list[str]:
        """The criteria that are not met, with the figures."""
        found = []
        if self.error_rate > criteria.error_rate:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.errors.items())
            found.append(f"error rate {self.error_rate:.3%} ({kinds}), allowed {criteria.error_rate:.3%}")
        if criteria.p99_ms is not None and not self.p99_ms.value <= criteria.p99_ms:
            interval = f"{self.p99_ms.low:.4g} to {self.p99_ms.high:.4g}"
            found.append(f"p99 {self.p99_ms.value:.4g} ms (95 % interval {interval}), allowed {criteria.p99_ms:g}")
        if criteria.requests_per_s is not None and not self.requests_per_s.value >= criteria.requests_per_s:
            interval = f"{self.requests_per_s.low:.4g} to {self.requests_per_s.high:.4g}"
            figure = f"{self.requests_per_s.value:.4g} requests/s (95 % interval {interval})"
            found.append(f"{figure}, wanted {criteria.requests_per_s:g}")
        return found


def summarise(
    recording: Recording,
    scenario: Scenario,
    *,
    name: str,
    ceiling: Ceiling,
    machine: dict[str, Any],
    stages: dict[str, Any] | None = None,
) -> Result:
    """The result of a recording. Raises `Failure` when no request was answered, with the reasons."""
    window_s = recording.duration_s
    due = [sample for sample in recording.samples if 0 <= sample.intended_s < window_s]
    good = [sample for sample in due if not sample.error]
    if not good:
        reasons = "; ".join(f"{kind}: {message}" for kind, message in recording.messages.items())
        raise Failure(f"none of {len(due)} requests was answered: {reasons or 'none was due within the window'}")
    due_s = np.array([sample.intended_s for sample in good])
    latencies_ms = np.array([(sample.done_s - sample.intended_s) * 1000 for sample in good])
    answers_s = np.array([sample.done_s for sample in recording.samples if not sample.error])
    done_s = answers_s[(answers_s >= 0) & (answers_s < window_s)]
    if not len(done_s):
        raise Failure(f"no answer came within the window of {window_s:g} s, only later ones; lower the load, or measure longer")
    errors = Counter(sample.error for sample in due if sample.error)
    counted_s, counted_for_s = between_answers(answers_s, duration_s=window_s)
    return Result(
        name=name,
        loop=scenario.load.kind,
        note=OPEN_NOTE if scenario.load.kind == "open" else CLOSED_NOTE,
        requests=len(due),
        requests_per_s=estimate_rate(counted_s, duration_s=counted_for_s),
        texts_per_s=len(counted_s) / counted_for_s * scenario.texts_per_request,
        p99_ms=estimate_percentile(due_s, latencies_ms, duration_s=window_s, percent=99),
        mean_ms=float(latencies_ms.mean()),
        quantiles_ms={f"{percent:g}": float(np.percentile(latencies_ms, percent)) for percent in QUANTILES},
        timeline=_timeline(recording, due_s, latencies_ms),
        error_rate=errors.total() / len(due),
        errors=dict(errors.most_common()),
        messages=recording.messages,
        releases=dict(Counter(sample.release for sample in good).most_common()),
        lateness_p99_ms=float(np.percentile([(sample.sent_s - sample.intended_s) * 1000 for sample in due], 99)),
        generator_cpu_share=recording.cpu_s / window_s,
        drift=find_drift(due_s, latencies_ms, done_s, duration_s=window_s),
        ceiling=ceiling,
        scenario=scenario.to_json(),
        machine=machine,
        stages=stages or {},
    )


def _timeline(recording: Recording, due_s: Float64, latencies_ms: Float64) -> list[dict[str, float]]:
    """One row for each second of the window."""
    failed = Counter(int(sample.intended_s) for sample in recording.samples if sample.error and sample.intended_s >= 0)
    rows = []
    for second in range(int(np.ceil(recording.duration_s))):
        latencies = latencies_ms[due_s.astype(int) == second]
        p50, p99 = np.percentile(latencies, [50, 99]).tolist() if len(latencies) else (0.0, 0.0)
        rows.append({"second": second, "good": len(latencies), "failed": failed[second], "p50_ms": p50, "p99_ms": p99})
    return rows
