"""`loadtests.alone`: one request at a time beside the server's counters, which follow its answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from contract.command import Failure
from contract.tensors import CLASSIFIER, ENGINE, TOKENIZER
from loadtests import alone
from loadtests.alone import measure_alone
from loadtests.operator import Counters

ENGINE_MS = (4.0, 4.0, 4.0, 20.0, 4.0)
"""Of each request in turn: a fifth of them is slow."""


class Clock:
    """Stands in for `time`: it moves when somebody works or sleeps, and a little whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        self.now += 0.0005
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Server:
    """Answers after its compute and 2 ms, and counts the request 3 ms later."""

    def __init__(self, clock: Clock, *, others: int = 0, counts: bool = True) -> None:
        self.clock, self.others, self.counts = clock, others, counts
        self.asked = 0
        self.uncounted: list[tuple[float, float]] = []
        names = ("request_success", "request_duration_us", "queue_duration_us")
        self.totals = {model: dict.fromkeys(names, 0.0) for model in alone.PATH}

    def send(self, texts: Sequence[str]) -> str:
        engine_ms = ENGINE_MS[self.asked % len(ENGINE_MS)]
        self.asked += 1
        self.clock.sleep((engine_ms + 1.0 + 2.0) / 1000)
        self.uncounted.append((self.clock.now + 0.003, engine_ms))
        return "release"

    def counters(self) -> Counters:
        while self.counts and self.uncounted and self.uncounted[0][0] <= self.clock.now:
            self._count(TOKENIZER, compute_ms=1.0)
            self._count(ENGINE, compute_ms=self.uncounted.pop(0)[1])
            self._count(CLASSIFIER, compute_ms=0.0)
            for _ in range(self.others):
                self._count(ENGINE, compute_ms=100.0)
        return {model: dict(values) for model, values in self.totals.items()}

    def _count(self, model: str, *, compute_ms: float) -> None:
        values = self.totals[model]
        values["request_success"] += 1
        values["request_duration_us"] += 1000 * (compute_ms + 0.5)
        values["queue_duration_us"] += 500


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(alone, "time", made)
    return made


def test_medians_of_each_request_leave_slow_moments_out(clock: Clock) -> None:
    server = Server(clock)
    found = measure_alone(server.send, [["a"], ["b"]], server, count=20)
    assert found["requests"] == 20 and server.asked == 20 + alone.WARMUP
    parts = {"total": 7.0, "tokenizer compute": 1.0, "engine compute": 4.0, "beyond": 2.0, "queues": 1.0}
    assert found["p50_ms"] == pytest.approx(parts)
    assert found["tokenizer_of_engine_p50"] == pytest.approx(0.25)


def test_a_request_that_was_counted_with_others_is_left_out(clock: Clock) -> None:
    server = Server(clock, others=1)
    with pytest.raises(Failure, match="none of 3 requests was counted by itself; is somebody else using this server"):
        measure_alone(server.send, [["a"]], server, count=3)


def test_a_server_that_counts_nothing_is_another_one(clock: Clock) -> None:
    server = Server(clock, counts=False)
    with pytest.raises(Failure, match="a request was answered, and 5 s later the server has not counted it"):
        measure_alone(server.send, [["a"]], server, count=3)
