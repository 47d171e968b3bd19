"""`loadtests.descent` on a simulated server whose best configuration is known from measuring them all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from loadtests.descent import Axis, Descent, Outcome, Point

RELEASES = ((20.0, 1.0), (11.0, 0.999), (6.0, 0.99), (9.0, 0.998), (30.0, 1.0))  # ms of one core a row; agreement
INSTANCES = (1, 2, 3, 4)
THREADS = (1, 2, 4, 8)
DELAYS_MS = (0.0, 1.0, 4.0, 16.0)
BATCHES = (1, 8, 64)
AXES = [Axis(size=len(RELEASES), ordered=False), *(Axis(size=len(axis)) for axis in (INSTANCES, THREADS, DELAYS_MS, BATCHES))]
POINTS = list(itertools.product(*(range(axis.size) for axis in AXES)))
START = (0, 3, 3, 0, 2)
CORES = 16
AGREEMENT = 0.995


class SimulatedServer:
    """A queue before batching instances, each with its threads; numbers as a seed draws them."""

    def __init__(self, seed: int, *, noise: float) -> None:
        drawn = np.random.default_rng(seed)
        self.rate, self.bound_ms = float(drawn.uniform(20, 120)), float(drawn.uniform(18, 80))
        self.serial = float(drawn.uniform(0.05, 0.3))  # of the work, which threads do not share (Amdahl)
        self.call_ms = float(drawn.uniform(0.5, 5))  # a run costs this, however many rows are in it
        self._noise, self._drawn = noise, np.random.default_rng(seed + 1000)
        self.measured: list[Point] = []

    def measure(self, point: Point) -> Outcome:
        self.measured.append(point)
        outcome = self.truth(point)
        cost, p99_ms = (float(value * self._drawn.normal(1, self._noise)) for value in (outcome.cost, outcome.p99_ms))
        return Outcome(feasible=outcome.feasible and p99_ms <= self.bound_ms, cost=cost, p99_ms=p99_ms)

    def truth(self, point: Point) -> Outcome:
        row_ms, agreement = RELEASES[point[0]]
        instances, threads, delay_ms, limit = (
            values[index] for values, index in zip((INSTANCES, THREADS, DELAYS_MS, BATCHES), point[1:], strict=True)
        )
        parallel = self.serial + (1 - self.serial) / threads
        crowding = max(1.0, instances * threads / CORES)  # more threads than cores take turns
        batch = min(limit, 1 + self.rate * delay_ms / 1000)
        run_ms = (self.call_ms + batch * row_ms * parallel) * crowding
        load = self.rate / 1000 * run_ms / batch / instances
        waste = 1 + 0.1 * (threads - 1) * self.serial  # threads that wait for the serial part
        cost = self.rate / 1000 * (self.call_ms / batch + row_ms) * waste + 0.02 * instances
        if load >= 0.98:
            return Outcome(feasible=False, cost=math.inf, p99_ms=1e4 * load)
        p99_ms = delay_ms + run_ms * (1 + 2.3 * load ** math.sqrt(2 * instances + 2) / (instances * (1 - load)))
        return Outcome(feasible=p99_ms <= self.bound_ms and agreement >= AGREEMENT, cost=cost, p99_ms=p99_ms)


@pytest.mark.parametrize("seed", range(400))
def test_it_finds_the_known_optimum_with_a_third_of_the_measurements_at_most(seed: int) -> None:
    server = SimulatedServer(seed, noise=0.0)
    outcomes = {point: server.truth(point) for point in POINTS}
    best = min((point for point in POINTS if outcomes[point].feasible), key=lambda point: outcomes[point].rank)
    found = Descent(AXES, server.measure).run(START)
    print(seed, best, found, len(server.measured), len(POINTS), sum(o.feasible for o in outcomes.values()))
    assert found is not None and outcomes[found].rank == outcomes[best].rank  # configurations can be equal
    assert len(server.measured) == len(set(server.measured)) <= 0.3 * len(POINTS)
