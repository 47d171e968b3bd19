"""`loadtests.peers.measure`: which loads a server meets, on a clock that does not wait."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure
from loadtests.peers import measure as measuring
from loadtests.peers.measure import Plan, measure, measure_round, settle
from loadtests.scenario import Load
from tests.loadtests.virtual import Server, run_virtually

PLAN = Plan(texts=Path("texts.jsonl"), requests=[("a",), ("b",)], seconds=3, warmup_s=1, timeout_s=15, seed=0)
WARM = dataclasses.replace(PLAN, warmup_s=3)
"""The first batches of an open loop are small ones."""


@pytest.fixture(autouse=True)
def _virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "run_precisely", run_virtually)


def opened(service_s: float = 0.05, *, workers: int = 2, fails: bool = False) -> Any:
    """Makes targets of one simulated server: 40 requests/s at most with two workers of 50 ms."""

    @asynccontextmanager
    async def target() -> AsyncIterator[Server]:
        server = Server(service_s=service_s, workers=workers)
        if fails:
            server.fail = lambda number: RuntimeError("out of order")
        yield server

    return target


def idle() -> float:
    return 0.0


def test_a_round_finds_the_peak_and_meets_the_server_at_its_shares() -> None:
    found = measure_round("x", opened(), PLAN, cpu_s=idle, other_rates={"other": 10.0})
    assert found["peak_per_s"] == pytest.approx(40, rel=0.1)
    assert [found["closed"][users]["requests_per_s"] for users in ("1", "8", "32", "64")] == pytest.approx(
        [20, 40, 40, 40], rel=0.1
    )
    assert [found["open"][share]["rate"] / found["peak_per_s"] for share in ("0.5", "0.8")] == pytest.approx([0.5, 0.8])
    assert found["at"]["other"]["rate"] == 10.0
    assert found["overload"]["rate"] == pytest.approx(2 * found["peak_per_s"])


def in_batches(size: int, batch_s: float) -> Any:
    """Makes targets of a server that answers its waiting requests together, `size` at most, after so many seconds."""

    @asynccontextmanager
    async def target() -> AsyncIterator[Batches]:
        yield Batches(size, batch_s)

    return target


class Batches:
    """What a server with a batcher does: all answers of a batch at one moment."""

    def __init__(self, size: int, batch_s: float) -> None:
        self._size, self._batch_s = size, batch_s
        self._waiting: list[asyncio.Future[str]] = []
        self._worker: asyncio.Task[None] | None = None

    async def send(self, texts: Sequence[str]) -> str:
        """A `loadtests.record.Send`."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return str(await answer)

    async def _work(self) -> None:
        await asyncio.sleep(0)  # those of one moment come together
        while self._waiting:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            await asyncio.sleep(self._batch_s)
            for answer in batch:
                if not answer.done():  # nobody waits for it any more
                    answer.set_result("simulated-1")
            await asyncio.sleep(0)


@pytest.mark.parametrize("batch_s", [0.7, 0.9, 1.1, 1.3])
@pytest.mark.parametrize("load", [Load(kind="closed", users=32), Load(kind="closed", users=64), Load(kind="open", rate=100)])
def test_the_rate_of_a_server_that_answers_in_batches_is_not_a_multiple_of_them(load: Load, batch_s: float) -> None:
    found = measure("x", in_batches(32, batch_s), WARM, load)
    assert found["requests_per_s"] == pytest.approx(32 / batch_s, rel=0.01)


def test_a_load_lasts_until_it_has_answers_enough_or_five_times_as_long() -> None:
    def requests(service_s: float, load: Load) -> int:
        return int(measure("x", opened(service_s), PLAN, load)["requests"])

    assert requests(0.05, Load(kind="closed", users=1)) == pytest.approx(130, abs=3)  # 20 requests/s, 6.5 s
    assert requests(0.05, Load(kind="closed", users=32)) == pytest.approx(400, abs=10)  # 40 requests/s, 10 s
    assert requests(0.5, Load(kind="closed", users=32)) == pytest.approx(4 * 15, abs=5)  # 4 requests/s, no longer than 15 s
    assert requests(0.005, Load(kind="closed", users=8)) == pytest.approx(400 * 3, abs=20)  # no shorter than 3 s
    assert requests(0.05, Load(kind="open", rate=20)) == pytest.approx(130, abs=25)


def test_the_peak_is_the_best_of_all_that_was_measured() -> None:
    found = measure_round("x", in_batches(100, 1.0), WARM, cpu_s=idle)  # 64 in flight do not fill its batches
    assert found["open"]["0.8"]["rate"] == pytest.approx(0.8 * 64, rel=0.02)
    assert found["peak_per_s"] == found["overload"]["requests_per_s"] == pytest.approx(100, rel=0.02)


def test_latency_counts_from_the_time_a_request_was_due() -> None:
    found = measure_round("x", opened(), PLAN, cpu_s=idle)
    assert found["closed"]["1"]["p50_ms"] == pytest.approx(50, abs=1)
    assert found["overload"]["p99_ms"] > 1500  # the queue grows by 40 a second, for 4 s


def test_a_point_keeps_what_the_report_reads() -> None:
    found = measure("x", opened(), PLAN, Load(kind="closed", users=8))
    assert set(measuring.KEPT) - {"stages"} <= set(found)
    assert {"users", "requests_per_s", "p50_ms", "p95_ms", "p99_ms"} <= set(found)
    assert found["users"] == 8 and found["errors"] == {} and "stages" not in found


def test_a_server_that_fails_everything_has_a_reason_and_no_latency() -> None:
    found = measure("x", opened(fails=True), PLAN, Load(kind="open", rate=20))
    assert (found["requests_per_s"], found["error_rate"], found["rate"]) == (0.0, 1.0, 20)
    assert "RuntimeError: out of order" in found["failure"]
    with pytest.raises(Failure, match=r"x answers nothing: none of \d+ requests was answered: .*out of order"):
        measure_round("x", opened(fails=True), PLAN, cpu_s=idle)


def test_answers_that_all_come_too_late_are_no_measurement() -> None:
    found = measure("x", opened(service_s=9, workers=999), PLAN, Load(kind="open", rate=50))
    assert found["failure"] == "no answer came within the window of 3 s, only later ones; lower the load, or measure longer"


def test_between_two_loads_a_busy_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, busy_until = 0.0, 10.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    settle(lambda: min(now, busy_until))
    assert busy_until <= now <= busy_until + 1


def test_a_server_that_is_never_idle_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    settle(lambda: now)
    assert now == pytest.approx(30)
