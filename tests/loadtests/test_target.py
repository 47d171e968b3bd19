"""`loadtests.target` against a process that speaks Triton's protocol, and that is frozen for two seconds."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clients import BadRequest, Unavailable
from loadtests.closed import run_closed
from loadtests.open import run_open
from loadtests.record import Recording, run_precisely
from loadtests.target import GrpcTarget, waiting, waiting_http
from tests.clients.sockets import closed_url

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = [("one", "two"), ("three", "four")]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(the process, its address)"""
    command = [sys.executable, "-m", "tests.loadtests.fake_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            yield process, url
        finally:
            process.communicate(timeout=60)
    assert process.returncode == 0


def test_it_sends_what_was_made_beforehand_and_says_who_answered(server: tuple[subprocess.Popen[str], str]) -> None:
    async def run() -> list[str]:
        async with GrpcTarget(server[1], REQUESTS, timeout_s=60) as target:
            return [await target.send(texts) for texts in REQUESTS]

    assert run_precisely(run()) == ["fake", "fake"]


def test_a_caller_who_waits_gets_the_same_answers_and_errors(server: tuple[subprocess.Popen[str], str]) -> None:
    with waiting(server[1], REQUESTS, timeout_s=60) as send:
        assert [send(texts) for texts in REQUESTS] == ["fake", "fake"]
    for way in (waiting, waiting_http):
        with way(closed_url(), REQUESTS, timeout_s=60) as send, pytest.raises(Unavailable):
            send(REQUESTS[0])


def test_nobody_there_and_texts_that_no_server_takes_are_told() -> None:
    async def run() -> None:
        async with GrpcTarget(closed_url(), REQUESTS, timeout_s=60) as target:
            await target.send(REQUESTS[0])

    with pytest.raises(Unavailable):
        run_precisely(run())
    with pytest.raises(BadRequest, match="text 1 is empty"):
        GrpcTarget("127.0.0.1:1", [("a", " ")], timeout_s=1)


def test_a_server_frozen_for_two_seconds_shows_in_the_open_loop_and_not_in_the_closed_one(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = server

    async def freeze() -> None:
        await asyncio.sleep(1)
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(2)
        finally:
            process.send_signal(signal.SIGCONT)

    async def run() -> tuple[Recording, Recording]:
        async with GrpcTarget(url, REQUESTS, timeout_s=60) as target:
            open_loop = run_open(target.send, REQUESTS, rate=30, arrivals="constant", warmup_s=0, duration_s=5, timeout_s=60)
            closed_loop = run_closed(target.send, REQUESTS, users=1, warmup_s=0, duration_s=5, timeout_s=60)
            seen, hidden, _ = await asyncio.gather(open_loop, closed_loop, freeze())
        return seen, hidden

    recordings = run_precisely(run())
    seen, hidden = ([sample.done_s - sample.intended_s for sample in recording.samples] for recording in recordings)
    assert not any(sample.error for recording in recordings for sample in recording.samples)
    slow, hidden_slow = (sum(latency > 1.5 for latency in latencies) for latencies in (seen, hidden))
    assert slow >= 10  # of the fifteen that were due in the first half second
    assert 1 <= hidden_slow <= 2  # the one that was under way, however many were sent
    assert np.percentile(seen, 99) > 1.5
