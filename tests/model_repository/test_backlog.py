"""`Backlog` of `bert_tokenizer/1/model.py`, and the progress that it shares with the engine: how long would a request wait?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model_repository.loader import load_module


@pytest.fixture(scope="module")
def module() -> Any:
    return load_module("bert_tokenizer")


class Engine:
    """An engine's progress as the tokenizer reads it, moved by the test."""

    def __init__(self, module: Any) -> None:
        self.shared = np.zeros((4, 6))
        self.progress = self.shared[0, :4]
        self.progress[0] = 1.0
        self.backlog = module.Backlog(self.shared)

    def compute(self, tokens: int, seconds: float) -> None:
        self.progress[1:3] += tokens, seconds

    def start(self) -> None:
        self.progress[3] = np.inf

    def end(self, now: float) -> None:
        self.progress[3] = now

    def fall_behind(self) -> None:
        """Half a second after 50,000 tokens came in, a fifth of them is done."""
        self.start()
        self.backlog.wait_s(0.0)
        self.backlog.add(50_000, 0.0)
        self.backlog.wait_s(0.01)
        self.compute(10_000, 0.5)


@pytest.fixture
def engine(module: Any) -> Engine:
    return Engine(module)


def test_without_an_engine_that_writes_there_is_no_wait(module: Any) -> None:
    backlog = module.Backlog(np.zeros((4, 6)))
    for number in range(100):
        backlog.add(100_000, number / 100)
        assert backlog.wait_s(number / 100) == 0.0


def test_the_wait_is_what_is_owed_times_the_speed_under_load(engine: Engine) -> None:
    engine.start()
    engine.backlog.wait_s(0.0)
    engine.backlog.add(50_000, 0.0)
    assert engine.backlog.wait_s(0.01) == 0.0  # no speed known yet
    engine.compute(10_000, 0.5)
    assert engine.backlog.wait_s(0.5) == pytest.approx(40_000 * 0.5 / 10_000)
    engine.compute(30_000, 3.0)  # twice as slow now
    slower = 0.00005 + 0.3 * 0.00005
    assert engine.backlog.wait_s(3.5) == pytest.approx(10_000 * slower)
    engine.compute(9_500, 1.0)
    assert engine.backlog.wait_s(4.5) == 0.0  # little is owed: no one has to wait
    engine.backlog.add(10_000, 4.5)
    assert engine.backlog.wait_s(4.6) == pytest.approx(10_500 * slower)


def test_one_slow_call_is_no_slow_engine_and_many_are(engine: Engine) -> None:
    engine.start()
    engine.backlog.wait_s(0.0)
    engine.backlog.add(1_000_000, 0.0)
    engine.backlog.wait_s(0.0)
    engine.compute(2_000, 0.2)
    usual = engine.backlog.wait_s(0.2) / 998_000
    engine.compute(2_000, 1.0)
    assert engine.backlog.wait_s(1.2) / 996_000 < 3 * usual
    for number in range(20):
        engine.compute(2_000, 1.0)
        wait_s = engine.backlog.wait_s(2.2 + number)
    assert wait_s / 956_000 == pytest.approx(5 * usual, rel=0.01)


def test_the_speed_of_small_batches_does_not_count(engine: Engine) -> None:
    engine.start()
    for number in range(50):
        engine.backlog.add(10, number)
        engine.backlog.wait_s(number)
        engine.compute(10, 0.5)
    engine.backlog.add(50_000, 51.0)
    assert engine.backlog.wait_s(51.0) == 0.0


def test_what_was_lost_on_the_way_is_forgotten_when_the_engine_is_idle(engine: Engine) -> None:
    engine.fall_behind()
    assert engine.backlog.wait_s(0.5) > 1
    engine.end(0.6)
    assert engine.backlog.wait_s(0.65) > 1
    assert engine.backlog.wait_s(0.75) == 0.0
    assert engine.backlog.owed == 0


def test_what_was_just_sent_is_not_forgotten_though_the_engine_has_not_started(engine: Engine) -> None:
    engine.end(0.0)
    engine.backlog.wait_s(10.0)
    engine.backlog.add(5_000, 10.0)
    engine.backlog.wait_s(10.05)
    assert engine.backlog.owed == 5_000


def test_an_engine_that_started_again_owes_nothing(engine: Engine) -> None:
    engine.fall_behind()
    assert engine.backlog.wait_s(0.5) > 0
    engine.progress[:] = (2.0, 0.0, 0.0, np.inf)
    assert engine.backlog.wait_s(0.6) == 0.0


def test_requests_that_go_past_the_tokenizer_are_no_credit(engine: Engine) -> None:
    engine.start()
    engine.backlog.wait_s(0.0)
    engine.compute(100_000, 1.0)
    engine.backlog.wait_s(1.0)
    engine.backlog.add(5_000, 1.0)
    engine.backlog.wait_s(1.0)
    assert engine.backlog.owed == 5_000


def test_several_engines_are_as_fast_as_all_of_them_and_owe_what_all_tokenizers_sent(module: Any, engine: Engine) -> None:
    engine.shared[3, 0] = 1.5  # another engine
    other = module.Backlog(engine.shared, 2)
    engine.start()
    for backlog in (engine.backlog, other):
        backlog.wait_s(0.0)
    engine.backlog.add(30_000, 0.0)
    other.add(20_000, 0.0)
    for backlog in (engine.backlog, other):
        backlog.wait_s(0.0)
    engine.compute(6_000, 0.5)
    engine.shared[3, 1:3] += 4_000, 0.5
    assert engine.backlog.wait_s(0.5) == pytest.approx(40_000 * 0.5 / 10_000)
    assert other.wait_s(0.5) == pytest.approx(40_000 * 0.5 / 10_000)
    engine.end(0.5)
    engine.shared[3, 3] = np.inf  # the other one computes on
    assert engine.backlog.wait_s(0.9) > 1
    engine.shared[3, 3] = 0.9
    assert engine.backlog.wait_s(1.1) == other.wait_s(1.1) == 0.0


def test_a_tokenizer_or_engine_that_started_again_takes_the_others_along(module: Any, engine: Engine) -> None:
    other = module.Backlog(engine.shared, 2)
    engine.start()
    for backlog in (engine.backlog, other):
        backlog.wait_s(0.0)
        backlog.add(5_000, 0.0)
    engine.backlog.wait_s(0.0)
    assert engine.backlog.owed == 10_000
    module.Backlog(engine.shared, 2)
    engine.backlog.wait_s(0.01)
    assert 0 <= engine.backlog.owed <= 5_000
    engine.shared[1, 0] = 7.0
    engine.backlog.wait_s(0.02)
    assert engine.backlog.owed == 0


def test_tokenizer_and_engine_share_their_progress_under_the_servers_name(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = f"bert_test_{os.getpid()}_"
    monkeypatch.setenv("BERT_SHM_PREFIX", prefix)
    path = Path("/dev/shm") / f"{prefix}progress_7"  # noqa: S108
    try:
        ours, row = module.open_progress("7", "bert_tokenizer_0_0")
        theirs = [load_module("bert_engine").open_progress("7", f"bert_engine_0_{number}") for number in range(2)]
        assert row == 0
        theirs[1][:] = (1.0, 2.0, 3.0, 4.0)
        assert ours[:2].tolist() == [[0.0] * 6, [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]]
        again, row = module.open_progress("7", "bert_tokenizer_0_1")
        assert (again.tolist(), row) == (ours.tolist(), 1)  # a stub that starts again clears nothing of others
        module.Backlog(again, row).add(5, 6.0)
        assert ours[1].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert path.stat().st_size == ours.nbytes
    finally:
        path.unlink()


@pytest.mark.parametrize("model", ["bert_tokenizer", "bert_engine"])
@pytest.mark.parametrize("instance", ["0_64", "1_0"])
def test_an_instance_without_a_row_is_refused(model: str, instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERT_SHM_PREFIX", f"bert_test_{os.getpid()}_")
    with pytest.raises(ValueError, match=f"{model}_{instance} is one too many: allowed is one instance_group with a count of"):
        load_module(model).open_progress("7", f"{model}_{instance}")


def test_an_engine_that_ends_is_counted_no_more_unless_another_has_its_row() -> None:
    engine = load_module("bert_engine").TritonPythonModel()
    engine.started, engine.progress = 5.0, np.array([5.0, 2.0, 3.0, 4.0])
    engine.finalize()
    assert engine.progress.tolist() == [0.0] * 4
    engine.progress[:] = (6.0, 2.0, 3.0, 4.0)
    engine.finalize()
    assert engine.progress.tolist() == [6.0, 2.0, 3.0, 4.0]
