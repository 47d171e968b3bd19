"""When a failed request is sent again, and after how long: no transport, no clock of its own, no sleeping.

A classification changes nothing on the server, so sending it twice is harmless; what retries must not do is bury a server that
is struggling. Hence full jitter (M. Brooker, "Exponential Backoff And Jitter", 2015) and a budget that successes refill, as in
gRPC's retry throttling (proposal A6).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from clients.errors import ClassifierError, Rejected, TimedOut, Unavailable, Untrusted


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, how patiently, and after which failures a request is sent again. The deadline of the call always wins."""

    attempts: int = 20
    """Sendings of one request at most, the first one included."""
    first_wait_s: float = 0.05
    """The wait before retry n is drawn evenly from 0 to first_wait_s * 2**(n - 1)."""
    longest_wait_s: float = 2.0
    """What a wait is drawn from never reaches beyond this."""
    budget: int = 100
    """Retries that a connection may spend, for each request it may have in flight; ten successes give one back."""
    retry_rejected: bool = False
    """Also retry what a full server refused. Off: the caller is told at once, and can send less."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; at least 1 is needed")
        if not 0 < self.first_wait_s <= self.longest_wait_s:
            raise ValueError(f"first_wait_s is {self.first_wait_s}; it must be above 0 and at most longest_wait_s")
        if self.budget < 1:
            raise ValueError(f"budget is {self.budget}; at least 1 is needed")

    def allows(self, error: ClassifierError) -> bool:
        """Whether sending the request again can help."""
        if isinstance(error, Rejected):
            return self.retry_rejected
        return isinstance(error, Unavailable) and not isinstance(error, Untrusted)

    def longest_of(self, retry: int) -> float:
        """Seconds that the wait before retry number `retry` (from 1) lasts at most."""
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(retry - 1, 60))


NO_RETRIES = RetryPolicy(attempts=1)


class Budget:
    """Retries left to one connection."""

    REFILL = 0.1

    def __init__(self, size: float) -> None:
        self._size = self._left = size

    def refill(self) -> None:
        """A request succeeded."""
        self._left = min(self._size, self._left + self.REFILL)

    def take(self) -> bool:
        """Take one retry, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Deadline:
    """The end of one call."""

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0")
        self._timeout_s, self._clock, self._end = timeout_s, clock, clock() + timeout_s

    def left_s(self) -> float:
        """Seconds until then; 0 or less when it has passed."""
        return self._end - self._clock()

    def remaining_s(self) -> float:
        """Seconds that the next request may take; raises `TimedOut` when none are left."""
        left_s = self.left_s()
        if left_s <= 0:
            raise self.over()
        return left_s

    def over(self) -> TimedOut:
        """The error of a call that has taken too long."""
        return TimedOut(f"the {self._timeout_s:g} s of this call are over; allow more, or send fewer texts in one call")


class Attempts:
    """The sendings of one request."""

    def __init__(
        self, policy: RetryPolicy, budget: Budget, deadline: Deadline, draw: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._policy, self._budget, self._deadline, self._draw = policy, budget, deadline, draw
        self.made = 1

    def succeeded(self) -> None:
        """The last sending was answered."""
        self._budget.refill()

    def wait_s(self, error: ClassifierError) -> float:
        """Seconds to wait before the request is sent again; raises `error` when it is not to be."""
        error.attempts = self.made
        if self.made >= self._policy.attempts or not self._policy.allows(error):
            raise error
        wait = self._draw(0.0, self._policy.longest_of(self.made))
        if wait >= self._deadline.left_s() or not self._budget.take():
            raise error
        self.made += 1
        return wait
