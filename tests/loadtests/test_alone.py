"""`loadtests.alone`: one request at a time beside the server's counters, which follow its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from contract.command import Failure
from contract.tensors import CLASSIFIER, ENGINE, TOKENIZER
from loadtests import alone
from loadtests.alone import measure_alone
from loadtests.operator import Counters

ENGINE_MS = (4.0, 4.0, 4.0, 20.0, 4.0)
"""Of each request in turn: a fifth of them is slow."""


class Server:
    """Answers after its compute and 2 ms, and counts the request 3 ms later."""

    def __init__(self, *, others: int = 0, counts: bool = True) -> None:
        self.others, self.counts = others, counts
        self.asked = 0
        self.uncounted: list[tuple[float, float]] = []
        self.totals = {
            model: dict.fromkeys(("request_success", "request_duration_us", "queue_duration_us"), 0.0) for model in alone.PATH
        }

    async def send(self, texts: Sequence[str]) -> str:
        engine_ms = ENGINE_MS[self.asked % len(ENGINE_MS)]
        self.asked += 1
        until = time.perf_counter() + (engine_ms + 1.0 + 2.0) / 1000  # asyncio.sleep may be a millisecond late
        while time.perf_counter() < until:
            pass
        self.uncounted.append((time.perf_counter() + 0.003, engine_ms))
        return "release"

    def counters(self) -> Counters:
        while self.counts and self.uncounted and self.uncounted[0][0] <= time.perf_counter():
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


def test_medians_of_each_request_leave_slow_moments_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "WARMUP", 5)
    server = Server()
    found = asyncio.run(measure_alone(server.send, [["a"], ["b"]], server, count=20))
    assert found["requests"] == 20 and server.asked == 25
    assert found["p50_ms"]["engine compute"] == pytest.approx(4.0)
    assert found["p50_ms"]["tokenizer compute"] == pytest.approx(1.0)
    assert found["tokenizer_of_engine_p50"] == pytest.approx(0.25)
    assert 2.0 <= found["p50_ms"]["beyond"] < 5.0, "the mean would be 3.2 ms of compute more than the median"


def test_a_request_that_was_counted_with_others_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "WARMUP", 1)
    with pytest.raises(Failure, match="none of 3 requests was counted by itself; is somebody else using this server"):
        server = Server(others=1)
        asyncio.run(measure_alone(server.send, [["a"]], server, count=3))


def test_a_server_that_counts_nothing_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "WARMUP", 1)
    monkeypatch.setattr(alone, "COUNTED_WITHIN_S", 0.05)
    server = Server(counts=False)
    with pytest.raises(Failure, match=r"a request was answered, and 0\.05 s later the server has not counted it"):
        asyncio.run(measure_alone(server.send, [["a"]], server, count=3))
