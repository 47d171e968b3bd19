"""`loadtests.open` and `loadtests.closed` against a simulated server on a clock that jumps: what each of them sees."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from clients import Rejected
from contract.command import Failure
from loadtests.closed import run_closed
from loadtests.open import arrival_times, run_open
from loadtests.record import Recording, run_precisely
from tests.loadtests.virtual import Server, run_virtually

REQUESTS = [("a",), ("b",), ("c",)]
WINDOW: dict[str, Any] = {"warmup_s": 1.0, "duration_s": 10.0, "timeout_s": 60.0}


def open_loop(server: dict[str, Any], **options: Any) -> Recording:
    async def run() -> Recording:
        return await run_open(Server(**server).send, REQUESTS, **(WINDOW | {"arrivals": "constant"} | options))

    return run_virtually(run())


def closed_loop(server: dict[str, Any], **options: Any) -> Recording:
    async def run() -> Recording:
        return await run_closed(Server(**server).send, REQUESTS, **(WINDOW | options))

    return run_virtually(run())


def latencies_ms(recording: Recording) -> list[float]:
    return [(sample.done_s - sample.intended_s) * 1000 for sample in recording.samples if sample.intended_s >= 0]


def test_constant_arrivals_are_evenly_spaced_and_poisson_ones_have_their_mean_and_spread() -> None:
    assert arrival_times(rate=4, arrivals="constant", duration_s=1, seed=0) == [0, 0.25, 0.5, 0.75]
    times = arrival_times(rate=100, arrivals="poisson", duration_s=100, seed=0)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of an exponential distribution
    assert times[0] > 0 and times[-1] < 100


def test_a_seed_gives_the_same_arrivals() -> None:
    one, again, other = (arrival_times(rate=50, arrivals="poisson", duration_s=2, seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_the_open_loop_keeps_its_times_whatever_the_server_does() -> None:
    recording = open_loop({"service_s": 0.005, "frozen": (4, 6)}, rate=100)
    assert len(recording.samples) == 1100
    assert [sample.intended_s for sample in recording.samples] == pytest.approx(
        [number / 100 - 1 for number in range(1100)], abs=1e-6
    )
    assert all(sample.sent_s == pytest.approx(sample.intended_s, abs=1e-6) for sample in recording.samples)


def test_a_server_frozen_for_two_seconds_shows_in_the_open_loop_and_not_in_the_closed_one() -> None:
    frozen = {"service_s": 0.005, "frozen": (4, 6)}
    seen, hidden = latencies_ms(open_loop(frozen, rate=100)), latencies_ms(closed_loop(frozen, users=1))
    assert np.percentile(seen, 99) > 1900
    assert np.percentile(hidden, 99) == pytest.approx(5)
    assert max(hidden) == pytest.approx(2005, abs=10)  # one request a user, out of sixteen hundred


def test_latency_counts_from_the_intended_time_when_the_generator_is_late() -> None:
    async def run() -> Recording:
        loop: Any = asyncio.get_running_loop()

        async def send(texts: object) -> str:
            loop._jumping.now += 0.02  # as a generator does that spends 20 ms of its own on each request
            return ""

        return await run_open(send, REQUESTS, rate=100, arrivals="constant", warmup_s=0, duration_s=1, timeout_s=9)

    recording = run_virtually(run())
    lateness = [sample.sent_s - sample.intended_s for sample in recording.samples]
    assert lateness[-1] == pytest.approx(100 * 0.01, abs=0.05)
    assert latencies_ms(recording)[-1] >= 1000 * lateness[-1]


def test_the_closed_loop_keeps_its_users_in_flight() -> None:
    recording = closed_loop({"service_s": 0.1, "workers": 4}, users=8)
    answered = [sample for sample in recording.samples if 0 <= sample.done_s < 10]
    assert len(answered) == pytest.approx(400, abs=8)  # 4 workers of 10 a second
    assert np.median(latencies_ms(recording)) == pytest.approx(200)  # two requests deep at every worker


def test_requests_are_sent_in_order_and_again_from_the_first() -> None:
    async def run(loop: Any, **options: Any) -> list[Any]:
        server = Server(service_s=0.01)
        await loop(server.send, REQUESTS, warmup_s=0, duration_s=1, timeout_s=9, **options)
        return server.sent

    for sent in (run_virtually(run(run_open, rate=7)), run_virtually(run(run_closed, users=1))):
        assert sent[:5] == [("a",), ("b",), ("c",), ("a",), ("b",)]


def test_failures_are_counted_by_kind_with_their_first_message() -> None:
    async def run() -> Recording:
        server = Server(service_s=0.01, workers=9)
        server.fail = lambda number: Rejected(f"full at {number}") if number % 4 == 3 else None
        return await run_open(server.send, REQUESTS, rate=40, arrivals="constant", warmup_s=0, duration_s=1, timeout_s=9)

    recording = run_virtually(run())
    assert [sample.error for sample in recording.samples].count("Rejected") == 10
    assert recording.messages == {"Rejected": "full at 3"}
    assert {sample.release for sample in recording.samples if not sample.error} == {"simulated-1"}


def test_an_answer_that_does_not_come_in_time_is_a_failure() -> None:
    recording = open_loop({"service_s": 3.0, "workers": 99}, rate=5, timeout_s=2.0)
    assert {sample.error for sample in recording.samples} == {"TimedOut"}
    assert recording.messages == {"TimedOut": "no answer within 2 s"}


def test_a_closed_loop_that_is_refused_pauses_and_goes_on() -> None:
    async def run() -> Recording:
        server = Server(service_s=0.01)
        server.fail = lambda number: Rejected("full")
        return await run_closed(server.send, REQUESTS, users=1, warmup_s=0, duration_s=1, timeout_s=9)

    assert len(run_virtually(run()).samples) == pytest.approx(100, abs=2)


def test_too_many_requests_in_flight_fail_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.open.MAX_IN_FLIGHT", 10)
    recording = open_loop({"service_s": 100.0, "workers": 99}, rate=10, duration_s=2, timeout_s=200)
    assert [sample.error for sample in recording.samples].count("TooManyInFlight") == 20
    assert recording.messages["TooManyInFlight"] == "10 requests wait for their answers already"


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_a_probe_that_fails_ends_the_load_with_its_own_error(kind: str) -> None:
    async def send(texts: object) -> str:
        await asyncio.sleep(0.001)
        return "answered"

    def probe() -> None:
        raise Failure("the server does not answer any more")

    window: dict[str, Any] = {"warmup_s": 0, "duration_s": 0.2, "timeout_s": 9, "probe": probe}
    load = (
        run_open(send, REQUESTS, rate=20, arrivals="constant", **window)
        if kind == "open"
        else run_closed(send, REQUESTS, users=1, **window)
    )
    with pytest.raises(Failure, match="the server does not answer any more"):
        run_precisely(load)


def test_the_real_loop_sends_on_time_to_within_what_a_busy_machine_allows() -> None:
    async def send(texts: object) -> str:
        return "instant"

    recording = run_precisely(run_open(send, REQUESTS, rate=100, arrivals="constant", warmup_s=0.1, duration_s=1, timeout_s=9))
    assert [round(sample.intended_s, 3) for sample in recording.samples[:2]] == [-0.1, -0.09]
    assert all(sample.intended_s - 1e-6 <= sample.sent_s <= sample.done_s for sample in recording.samples)
    assert 0 < recording.cpu_s < 60
