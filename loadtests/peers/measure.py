"""One server, one round: saturation, latency at fixed numbers in flight, open loop below its peak, and overload above it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from contract.command import Failure
from loadtests.closed import run_closed
from loadtests.machine import describe_machine
from loadtests.open import run_open
from loadtests.record import Recording, Requests, run_precisely
from loadtests.result import Ceiling, Result, summarise
from loadtests.scenario import Load, Scenario

USERS = (1, 8, 32)
SHARES = (0.5, 0.8)
"""Of its own peak, at which a server is met by an open loop."""
OVERLOAD = 2.0
NO_CEILING = Ceiling(requests_per_s=None, how="not measured: the generator's CPU share stands beside every figure")
KEPT = ("requests", "mean_ms", "quantiles_ms", "errors", "generator_cpu_share", "drift", "lateness_p99_ms")


class Target(Protocol):
    """What a generator sends to."""

    async def send(self, texts: Sequence[str]) -> str:
        """See `loadtests.record.Send`."""


Open = Callable[[], AbstractAsyncContextManager[Target]]
"""Makes a target; a new one for each measurement, so that no connection is left over from the one before."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long each measurement is."""

    texts: Any
    """The file, for the scenario that a result carries."""
    seconds: float
    warmup_s: float
    timeout_s: float
    seed: int


def measure(name: str, target: Open, requests: Requests, plan: Plan, load: Load) -> dict[str, Any]:
    """One load on one server, as the results file keeps it: throughput, latencies, errors, the generator's share of CPU.

    A server that answers nothing has no latencies: {"requests_per_s": 0, "errors": ...}.
    """
    scenario = Scenario(
        texts=plan.texts,
        load=load,
        seed=plan.seed,
        warmup_s=plan.warmup_s,
        duration_s=plan.seconds,
        timeout_s=plan.timeout_s,
        sample=max(len(requests), 1),
    )
    recording = run_precisely(_run(target, requests, scenario))
    offered: dict[str, float] = {"rate": load.rate} if load.kind == "open" else {"users": load.users}
    try:
        result = summarise(recording, scenario, name=name, ceiling=NO_CEILING, machine=describe_machine())
    except Failure as error:
        failed = sum(bool(sample.error) for sample in recording.samples)
        return offered | {"requests": failed, "requests_per_s": 0.0, "error_rate": 1.0, "failure": str(error)}
    return offered | _kept(result)


async def _run(target: Open, requests: Requests, scenario: Scenario) -> Recording:
    load = scenario.load
    times = {"warmup_s": scenario.warmup_s, "duration_s": scenario.duration_s, "timeout_s": scenario.timeout_s}
    async with target() as opened:
        if load.kind == "closed":
            return await run_closed(opened.send, requests, users=load.users, **times)
        return await run_open(opened.send, requests, rate=load.rate, arrivals=load.arrivals, seed=scenario.seed, **times)


def _kept(result: Result) -> dict[str, Any]:
    found = {key: value for key, value in asdict(result).items() if key in KEPT}
    rates = {"requests_per_s": result.requests_per_s.value, "error_rate": result.error_rate}
    quantiles = {f"p{point}_ms": result.quantiles_ms[str(point)] for point in (50, 95, 99)}
    return rates | quantiles | found


def measure_round(
    name: str, target: Open, requests: Requests, plan: Plan, *, report: Callable[[str], None] = lambda said: None
) -> dict[str, Any]:
    """All loads of one round on a running server, the heaviest last: what it leaves behind disturbs nothing."""

    def under(load: Load, what: str) -> dict[str, Any]:
        report(what)
        return measure(name, target, requests, plan, load)

    closed = {str(users): under(Load(kind="closed", users=users), f"{users} in flight") for users in USERS}
    peak = max(point["requests_per_s"] for point in closed.values())
    if peak == 0:
        raise Failure(f"{name} answers nothing under load: {closed['1']['failure']}")
    loads = {str(share): Load(kind="open", rate=share * peak) for share in SHARES}
    return {
        "closed": closed,
        "peak_per_s": peak,
        "open": {share: under(load, f"open loop at {share} of its peak") for share, load in loads.items()},
        "overload": under(Load(kind="open", rate=OVERLOAD * peak), f"{OVERLOAD:g} times its peak"),
    }


async def _labels(label_of: Callable[[str], Any], texts: Sequence[str], in_flight: int) -> list[str]:
    gate = asyncio.Semaphore(in_flight)

    async def ask(text: str) -> str:
        async with gate:
            return str(await label_of(text))

    return list(await asyncio.gather(*map(ask, texts)))
