"""One server, one round: saturation, latency at fixed numbers in flight, open loop below its peak, and overload above it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from contract.command import Failure
from loadtests.breakdown import batch_delay_ms, join_stages, take_probe
from loadtests.machine import describe_machine
from loadtests.measure import generate
from loadtests.operator import Operator
from loadtests.record import Probe, Recording, Requests, run_precisely
from loadtests.result import Ceiling, Result, summarise
from loadtests.scenario import Load, Scenario

USERS = (1, 8, 32, 64)
"""In flight, in closed loops. The last fills two batches of 32, or one of 64: a server whose next batch waits is saturated."""
SHARES = (0.5, 0.8)
"""Of its own peak, at which a server is met by an open loop."""
OVERLOAD = 2.0
LONGEST = 5.0
"""Windows of the plan's length that a load may last, until it has answers enough."""
ANSWERS = 130
"""Wanted of every load, on average where they come by chance: a p99 needs 100."""
SATURATED = 32
SATURATED_ANSWERS = 400
"""Wanted with so many in flight: a server's peak is read there, and texts differ in length."""
SETTLED_CORES = 0.3
"""A server that uses less between two loads has done with what the first one left behind."""
SETTLE_S = 30.0
NO_CEILING = Ceiling(requests_per_s=None, how="not measured: the generator's CPU share stands beside every figure")
KEPT = (
    "requests",
    "error_rate",
    "mean_ms",
    "quantiles_ms",
    "errors",
    "generator_cpu_share",
    "drift",
    "lateness_p99_ms",
    "stages",
)


class Target(Protocol):
    """What a generator sends to."""

    async def send(self, texts: Sequence[str]) -> str:
        """See `loadtests.record.Send`."""


Open = Callable[[], AbstractAsyncContextManager[Target]]
"""Makes a target; a new one for each measurement, so that no connection is left over from the one before."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How each load is measured."""

    texts: Path
    requests: Requests
    seconds: float
    warmup_s: float
    timeout_s: float
    seed: int

    @property
    def longest_s(self) -> float:
        """That a load may last."""
        return LONGEST * self.seconds

    def answers(self, load: Load) -> int:
        """Good answers that a load is to have."""
        return SATURATED_ANSWERS if load.users >= SATURATED else ANSWERS

    def scenario(self, load: Load) -> Scenario:
        """The scenario of one load. An open one sends at times fixed beforehand, so its length is known beforehand too."""
        needed_s = self.answers(load) / load.rate if load.kind == "open" else 0.0
        return Scenario(
            texts=self.texts,
            load=load,
            seed=self.seed,
            warmup_s=self.warmup_s,
            duration_s=max(self.seconds, min(needed_s, self.longest_s)),
            timeout_s=self.timeout_s,
            sample=max(len(self.requests), 1),
        )


def measure(name: str, target: Open, plan: Plan, load: Load, operator: Operator | None = None) -> dict[str, Any]:
    """One load on one server, as the results file keeps it; with an operator, where the time went as well.

    A server that answers nothing has no latencies: {"requests_per_s": 0, "failure": why}.
    """
    scenario = plan.scenario(load)
    offered = {"rate": load.rate} if load.kind == "open" else {"users": load.users}
    probe = functools.partial(take_probe, operator) if operator else None
    recording = run_precisely(_run(target, plan, scenario, probe))
    stages: dict[str, Any] | None = None
    try:
        if operator is not None:
            cores = describe_machine()["cores"]
            stages = join_stages(recording, *recording.probes, cores=cores, batch_delay_ms=batch_delay_ms(operator)).to_json()
        result = summarise(recording, scenario, name=name, ceiling=NO_CEILING, machine={}, stages=stages)
    except Failure as error:
        return offered | {"requests": len(recording.samples), "requests_per_s": 0.0, "error_rate": 1.0, "failure": str(error)}
    return offered | _kept(result)


async def _run(target: Open, plan: Plan, scenario: Scenario, probe: Probe | None) -> Recording:
    answers, longest_s = plan.answers(scenario.load), plan.longest_s
    async with target() as opened:
        return await generate(opened.send, plan.requests, scenario, probe, answers=answers, longest_s=longest_s)


def _kept(result: Result) -> dict[str, Any]:
    quantiles = {f"p{point}_ms": result.quantiles_ms[str(point)] for point in (50, 95, 99)}
    beside = {key: value for key, value in asdict(result).items() if key in KEPT and (key != "stages" or value)}
    return {"requests_per_s": result.requests_per_s.value} | quantiles | beside


def settle(cpu_s: Callable[[], float], *, step_s: float = 0.5, limit_s: float = SETTLE_S) -> None:
    """Wait until a server is idle by its own CPU seconds, or until `limit_s` is over.

    Requests that the generator gave up on are still being worked on; the next load must not pay for them.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        began, before = time.monotonic(), cpu_s()
        time.sleep(step_s)
        if cpu_s() - before < SETTLED_CORES * (time.monotonic() - began):
            return


def measure_round(
    name: str,
    target: Open,
    plan: Plan,
    *,
    cpu_s: Callable[[], float],
    operator: Operator | None = None,
    other_rates: dict[str, float] | None = None,
) -> dict[str, Any]:
    """All loads of one round on a running server, the heaviest last: what it leaves behind disturbs nothing.

    Args:
        cpu_s: CPU seconds that the server has used so far.
        other_rates: further open loops, by name, in requests per second; those above the server's own peak are measured too.

    Raises:
        Failure: the server answers nothing at all.
    """

    def under(load: Load) -> dict[str, Any]:
        settle(cpu_s)
        return measure(name, target, plan, load, operator if load.kind == "closed" else None)

    closed = {str(users): under(Load(kind="closed", users=users)) for users in USERS}
    saturated = max(point["requests_per_s"] for point in closed.values())
    if saturated == 0:
        raise Failure(f"{name} answers nothing: {closed[str(USERS[0])]['failure']}")

    def at(rate: float) -> dict[str, Any]:
        return under(Load(kind="open", rate=rate))

    found: dict[str, Any] = {
        "closed": closed,
        "open": {str(share): at(share * saturated) for share in SHARES},
        "at": {other: at(rate) for other, rate in (other_rates or {}).items()},
        "overload": at(OVERLOAD * saturated),
    }
    return found | {"peak_per_s": max(saturated, found["overload"]["requests_per_s"])}
