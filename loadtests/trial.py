"""One trial of a search: a deployed setting under an open loop at the rate that is asked for, broken off once it has failed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from clients import ClassifierError, connect
from contract.command import Failure
from loadtests.ceiling import UNKNOWN
from loadtests.deployment import Setting, apply, served
from loadtests.descent import Outcome
from loadtests.machine import describe_machine
from loadtests.measure import generate, read_requests
from loadtests.open import arrival_times
from loadtests.operator import Operator
from loadtests.record import Probe, Recording, Requests, Send, run_precisely
from loadtests.result import MAX_CPU_SHARE, summarise
from loadtests.scenario import Scenario
from loadtests.target import GrpcTarget

LABELS_TIMEOUT_S = 600.0
"""For all texts of a search together, on a slow engine."""


@dataclass(frozen=True)
class Broken:
    """A load that was broken off."""

    after: float
    """Share of the measured window."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of a setting."""

    outcome: Outcome
    reason: str
    """Why it does not meet the bound; "" when it does."""
    result: dict[str, Any] | None
    """`loadtests.result.Result` of a window that was not broken off."""


def run_trial(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
    """Serve `repository` with `setting` and see whether it meets the scenario's criterion for p99.

    Raises:
        UsageError, Failure: texts that cannot be used, a server that does not start, or a generator that is itself the limit.
    """
    apply(setting, repository)
    requests, machine = read_requests(scenario), describe_machine()
    with served(repository) as operator:
        recording = run_precisely(_load(operator, requests, scenario))
    if isinstance(recording, Broken):
        outcome = Outcome(feasible=False, cost=math.inf, p99_ms=math.inf, miss=1 / max(recording.after, 0.001))
        return Trial(outcome=outcome, reason=recording.reason, result=None)
    result = summarise(recording, scenario, name=str(setting), ceiling=UNKNOWN, machine=machine)
    if result.generator_cpu_share > MAX_CPU_SHARE:
        raise Failure(
            f"the generator used {result.generator_cpu_share:.0%} of a core at {scenario.load.rate:g} requests/s, allowed "
            f"{MAX_CPU_SHARE:.0%}: it would be measured, not the server; lower --rate, or search on a larger machine"
        )
    before, after = recording.probes
    bound_ms = scenario.criteria.p99_ms or math.inf
    unmet = result.unmet(scenario.criteria) + result.refusals  # a queue that grows slowly would miss the bound after the window
    outcome = Outcome(
        feasible=not unmet,
        cost=(after - before) / recording.duration_s,
        p99_ms=result.p99_ms.value,
        miss=result.p99_ms.value / bound_ms,
    )
    return Trial(outcome=outcome, reason="; ".join(unmet), result=result.to_json())


async def _load(operator: Operator, requests: Requests, scenario: Scenario) -> Recording | Broken:
    async with GrpcTarget(operator.grpc_url, requests, timeout_s=scenario.timeout_s) as target:
        return await run_bounded(target.send, requests, scenario, functools.partial(server_cpu_s, operator.pid))


def window_requests(scenario: Scenario) -> int:
    """Requests that an open load has due within the measured window; the seed fixes them."""
    load, seconds = scenario.load, scenario.warmup_s + scenario.duration_s
    due = arrival_times(rate=load.rate, arrivals=load.arrivals, duration_s=seconds, seed=scenario.seed)
    return sum(time >= scenario.warmup_s for time in due)


def server_cpu_s(pid: int) -> float:
    """CPU seconds that a server and all its processes have used."""
    parent, used = psutil.Process(pid), 0.0
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            times = process.cpu_times()
            used += times.user + times.system
    return used


async def run_bounded(send: Send, requests: Requests, scenario: Scenario, probe: Probe | None = None) -> Recording | Broken:
    """Put an open load on a target until its window is over, a request fails, or so many of the window's requests are later
    than the bound that their 99th percentile is as well, whatever the rest brings."""
    loop, warmup_s, window_s = asyncio.get_running_loop(), scenario.warmup_s, scenario.duration_s
    bound_ms = scenario.criteria.p99_ms or math.inf
    count = window_requests(scenario)
    allowed = count - math.floor(0.99 * (count - 1)) - 1  # one more, and numpy's 99th percentile lies between two late ones
    begin, late = loop.time() + warmup_s, 0
    broken: asyncio.Future[Broken] = loop.create_future()

    def break_off(reason: str) -> None:
        if not broken.done():
            broken.set_result(Broken(max(loop.time() - begin, 0) / window_s, reason))

    def count_late() -> None:
        nonlocal late
        late += 1
        if late > allowed:
            break_off(f"{late} requests took longer than {bound_ms:g} ms")

    async def watched(texts: Sequence[str]) -> str:
        timer = loop.call_later(bound_ms / 1000, count_late) if loop.time() >= begin and bound_ms < math.inf else None
        try:
            return await send(texts)
        except ClassifierError as error:
            break_off(f"{type(error).__name__}: {error}")
            raise
        finally:
            if timer is not None:
                timer.cancel()

    generator = asyncio.create_task(generate(watched, requests, scenario, probe))
    both: set[asyncio.Future[Any]] = {generator, broken}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not broken.done():
        return await generator
    generator.cancel()
    await asyncio.wait({generator})
    return broken.result()


def served_labels(repository: Path, texts: Sequence[str]) -> list[str]:
    """The label that a deployment gives to each text. Raises `Failure` when it does not start, or does not answer."""
    with served(repository) as operator:
        return labels_of(operator.grpc_url, texts)


def labels_of(url: str, texts: Sequence[str]) -> list[str]:
    """The label that the classifier at `url` gives to each text. Raises `Failure` when it does not answer."""
    try:
        with connect(url, timeout_s=LABELS_TIMEOUT_S) as classifier:
            return [prediction.label for prediction in classifier.classify(texts)]
    except ClassifierError as error:
        raise Failure(f"{url}: {type(error).__name__}: {error}") from error
