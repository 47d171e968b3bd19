"""A scenario put on a target: texts read, load generated, ceiling and stages measured where the operator's token is at hand."""

from __future__ import annotations

import asyncio
import functools

from tqdm import tqdm

from clients.errors import BadRequest, ClassifierError
from contract.command import Failure, UsageError
from loadtests.breakdown import batch_delay_ms, join_stages, take_probe
from loadtests.ceiling import UNKNOWN, USERS, measure_ceiling
from loadtests.closed import run_closed
from loadtests.machine import describe_machine
from loadtests.open import run_open
from loadtests.operator import Operator
from loadtests.record import Probe, Recording, Requests, Send, run_precisely
from loadtests.result import Result, summarise
from loadtests.scenario import Scenario
from loadtests.target import GrpcTarget
from loadtests.texts import group_texts, read_texts


def read_requests(scenario: Scenario) -> Requests:
    """The texts of every request. Raises UsageError for a file without enough of them."""
    texts = read_texts(scenario.texts, limit=scenario.sample, seed=scenario.seed, column=scenario.column)
    requests = group_texts(texts, scenario.texts_per_request)
    if not requests:
        raise UsageError(f"{scenario.texts} holds {len(texts)} texts; texts_per_request is {scenario.texts_per_request}")
    return requests


async def generate(
    send: Send,
    requests: Requests,
    scenario: Scenario,
    probe: Probe | None = None,
    *,
    answers: int = 0,
    longest_s: float = 0.0,
) -> Recording:
    """Put the scenario's load on any target. Raises UsageError for a shape, which only Locust's users can follow.

    A closed loop goes on beyond the scenario's duration until it has so many `answers`, to `longest_s` at most.
    """
    load, warmup_s, duration_s = scenario.load, scenario.warmup_s, scenario.duration_s
    if load.shape != "constant":
        raise UsageError(f"load.shape is {load.shape}, which is for Locust: python -m loadtests.locust_run SCENARIO")
    progress = asyncio.create_task(_show_seconds(warmup_s + duration_s, f"{load.kind} loop"))
    try:
        if load.kind == "closed":
            return await run_closed(
                send,
                requests,
                users=load.users,
                warmup_s=warmup_s,
                duration_s=duration_s,
                timeout_s=scenario.timeout_s,
                probe=probe,
                answers=answers,
                longest_s=longest_s,
            )
        return await run_open(
            send,
            requests,
            rate=load.rate,
            arrivals=load.arrivals,
            seed=scenario.seed,
            warmup_s=warmup_s,
            duration_s=duration_s,
            timeout_s=scenario.timeout_s,
            probe=probe,
        )
    finally:
        progress.cancel()


async def _show_seconds(seconds: float, name: str) -> None:
    for _ in tqdm(range(round(seconds)), desc=name, unit="s"):
        await asyncio.sleep(1)


def measure(scenario: Scenario, *, url: str, operator: Operator | None, name: str) -> Result:
    """Run the scenario over gRPC against the classifier at `url`.

    Raises:
        UsageError: texts that cannot be read or classified, or a shape that is for Locust.
        Failure: no request was answered, or the operator's calls failed.
    """
    requests = read_requests(scenario)
    machine, ceiling = describe_machine(), UNKNOWN
    if operator is not None:
        ceiling = measure_ceiling(operator, url, requests, users=scenario.load.users or USERS, timeout_s=scenario.timeout_s)
    probe = functools.partial(take_probe, operator) if operator else None
    recording = run_precisely(_against(url, requests, scenario, probe))
    stages = None
    if operator is not None:
        before, after = recording.probes
        delay_ms = batch_delay_ms(operator)
        stages = join_stages(recording, before, after, cores=machine["cores"], batch_delay_ms=delay_ms).to_json()
    return summarise(recording, scenario, name=name, ceiling=ceiling, machine=machine, stages=stages)


async def _against(url: str, requests: Requests, scenario: Scenario, probe: Probe | None) -> Recording:
    try:
        target = GrpcTarget(url, requests, timeout_s=scenario.timeout_s)
    except BadRequest as error:
        raise UsageError(f"{scenario.texts}: {error}") from error
    async with target:
        try:
            await target.send(requests[0])  # a server that is not there, or has no model, ends the test before it begins
        except ClassifierError as error:
            raise Failure(f"{type(error).__name__}: {error}") from error
        return await generate(target.send, requests, scenario, probe)
