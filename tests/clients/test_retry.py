"""`clients.retry`: what is sent again, after how long, and when it is given up. No clock but a fake one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from clients import (
    BadRequest,
    Classifier,
    ClassifierError,
    Rejected,
    RetryPolicy,
    ServerError,
    TimedOut,
    Unavailable,
    Untrusted,
)
from clients.errors import describe
from clients.retry import Attempts, Budget, Deadline
from tests.clients.memory import MemoryTransport


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def attempts_of(policy: RetryPolicy, *, timeout_s: float = 1e9, draw: Any = lambda low, high: high) -> Attempts:
    return Attempts(policy, Budget(policy.budget), Deadline(timeout_s, Clock()), draw)


@pytest.mark.parametrize(
    ("error", "again", "again_if_asked"),
    [
        (Unavailable("gone"), True, True),
        (Rejected("full"), False, True),
        (TimedOut("late"), False, False),
        (BadRequest("empty"), False, False),
        (ServerError("broke"), False, False),
        (Untrusted("who?"), False, False),
        (ClassifierError("?"), False, False),
    ],
)
def test_only_what_another_try_can_help_is_tried_again(error: ClassifierError, again: bool, again_if_asked: bool) -> None:
    assert RetryPolicy().allows(error) is again
    assert RetryPolicy(retry_rejected=True).allows(error) is again_if_asked


def test_waits_double_up_to_the_longest_and_end_with_the_attempts() -> None:
    attempts = attempts_of(RetryPolicy(attempts=6, first_wait_s=0.1, longest_wait_s=0.5))
    error = Unavailable("gone")
    assert [attempts.wait_s(error) for _ in range(5)] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    with pytest.raises(Unavailable) as raised:
        attempts.wait_s(error)
    assert raised.value is error
    assert error.attempts == 6


def test_the_thousandth_wait_is_no_overflow() -> None:
    assert RetryPolicy().longest_of(5000) == 2.0


def test_jitter_is_full_and_spreads_the_retries_of_many_clients() -> None:
    draw = random.Random(7).uniform
    waits = [
        attempts_of(RetryPolicy(first_wait_s=1.0, longest_wait_s=1.0), draw=draw).wait_s(Unavailable("")) for _ in range(2000)
    ]
    assert 0 <= min(waits) < 0.01
    assert 0.99 < max(waits) <= 1
    assert sum(waits) / len(waits) == pytest.approx(0.5, abs=0.03)


def test_a_wait_that_reaches_past_the_deadline_is_not_waited() -> None:
    attempts = attempts_of(RetryPolicy(first_wait_s=1.0), timeout_s=0.9)
    with pytest.raises(Unavailable, match="gone"):
        attempts.wait_s(Unavailable("gone"))


def test_the_budget_ends_retries_until_successes_refill_it() -> None:
    budget = Budget(3)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    for _ in range(9):
        budget.refill()
    assert not budget.take()
    budget.refill()
    budget.refill()  # ten tenths are a little under one in floating point
    assert budget.take()
    for _ in range(1000):
        budget.refill()
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_retries_of_a_dead_server_stop_at_the_budget() -> None:
    """However many calls are made, a connection sends a dead server its calls and `budget` retries, no more."""
    clock = Clock()
    transport = MemoryTransport(error=Unavailable("gone"), error_at=None)
    classifier = Classifier(transport, retry=RetryPolicy(attempts=5, budget=10), sleep=clock.sleep)
    for _ in range(50):
        with pytest.raises(Unavailable):
            classifier.classify(["a"])
    assert len(transport.requests) == 50 + 10


def test_a_call_outlives_a_restart_of_the_server() -> None:
    clock = Clock()
    transport = MemoryTransport(error=Unavailable("restarting"), error_at=range(1, 4))
    classifier = Classifier(transport, retry=RetryPolicy(), sleep=clock.sleep)
    texts = [f"text {number}" for number in range(130)]
    assert [prediction.text for prediction in classifier.classify(texts, request_id="night-job")] == texts
    assert [len(request) for request in transport.requests] == [64, 64, 64, 64, 64, 2]
    names = [name for _, name in transport.calls]
    assert names == ["night-job/0", "night-job/1", "night-job/1", "night-job/1", "night-job/1", "night-job/2"]
    assert len(clock.slept) == 3


def test_without_a_policy_nothing_is_sent_twice() -> None:
    transport = MemoryTransport(error=Unavailable("gone"))
    with pytest.raises(Unavailable):
        Classifier(transport).classify(["a"])
    assert len(transport.requests) == 1


def test_a_rejection_is_sent_again_only_when_asked() -> None:
    for asked, sent in ((False, 1), (True, 2)):
        transport = MemoryTransport(error=Rejected("full"))
        classifier = Classifier(transport, retry=RetryPolicy(retry_rejected=asked), sleep=Clock().sleep)
        try:
            classifier.classify(["a"])
        except Rejected:
            assert not asked
        assert len(transport.requests) == sent


def test_the_deadline_is_that_of_the_whole_call() -> None:
    transport = MemoryTransport()
    Classifier(transport, timeout_s=50).classify(["a"] * 200, timeout_s=20)
    left = [timeout_s or 0.0 for timeout_s, _ in transport.calls]
    assert len(left) == 4
    assert 20 >= left[0] >= left[1] >= left[2] >= left[3] > 0
    clock = Clock()
    deadline = Deadline(2.5, clock)
    clock.sleep(2.0)
    assert deadline.remaining_s() == 0.5
    clock.sleep(0.5)
    with pytest.raises(TimedOut, match=r"the 2\.5 s of this call are over"):
        deadline.remaining_s()
    with pytest.raises(ValueError, match="timeout_s is 0; it must be above 0"):
        Deadline(0)


def test_a_failure_tells_its_request_and_its_attempts_beside_its_message() -> None:
    transport = MemoryTransport(error=Unavailable("host:1: gone"), error_at=None)
    classifier = Classifier(transport, retry=RetryPolicy(attempts=3), sleep=Clock().sleep)
    with pytest.raises(Unavailable, match=r"^host:1: gone$") as raised:
        classifier.classify(["a"], request_id="mine")
    assert describe(raised.value) == "Unavailable: host:1: gone (3 attempts, request mine)"
    with pytest.raises(Unavailable) as other:
        classifier.classify(["a"])
    assert len(other.value.request_id) == 32
    assert describe(BadRequest("text 0 is empty")) == "BadRequest: text 0 is empty"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attempts": 0}, "attempts is 0"),
        ({"first_wait_s": 0}, "first_wait_s is 0"),
        ({"first_wait_s": 3.0}, r"first_wait_s is 3\.0; it must be above 0 and at most longest_wait_s"),
        ({"budget": 0}, "budget is 0"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RetryPolicy(**options)
