"""`loadtests.descent` on a simulated server whose best configuration is known from measuring them all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from loadtests.descent import Axis, BudgetSpentError, Descent, Outcome, Point, pareto

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
        feasible = outcome.feasible and p99_ms <= self.bound_ms
        return Outcome(feasible=feasible, cost=cost, p99_ms=p99_ms, miss=p99_ms / self.bound_ms)

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
            return Outcome(feasible=False, cost=math.inf, p99_ms=math.inf, miss=1e4 * load)
        p99_ms = delay_ms + run_ms * (1 + 2.3 * load ** math.sqrt(2 * instances + 2) / (instances * (1 - load)))
        feasible = p99_ms <= self.bound_ms and agreement >= AGREEMENT
        return Outcome(feasible=feasible, cost=cost, p99_ms=p99_ms, miss=p99_ms / self.bound_ms)


@pytest.fixture(scope="module", params=range(10))
def server(request: pytest.FixtureRequest) -> SimulatedServer:
    return SimulatedServer(request.param, noise=0.0)


def best_of(server: SimulatedServer) -> Outcome:
    """The known optimum, from all configurations."""
    return min((outcome for outcome in map(server.truth, POINTS) if outcome.feasible), key=lambda outcome: outcome.rank)


def test_it_finds_the_known_optimum_with_under_a_third_of_the_measurements(server: SimulatedServer) -> None:
    found = Descent(AXES, server.measure).run(START)
    assert found is not None
    assert server.truth(found).rank == best_of(server).rank
    assert len(server.measured) == len(set(server.measured)) <= 0.3 * len(POINTS)


@pytest.mark.parametrize("seed", range(10))
def test_with_noise_it_finds_one_that_is_nearly_as_cheap(seed: int) -> None:
    server = SimulatedServer(seed, noise=0.03)
    found = Descent(AXES, server.measure).run(START)
    assert found is not None
    truth = server.truth(found)
    assert truth.cost <= 1.15 * best_of(server).cost
    assert truth.p99_ms <= 1.1 * server.bound_ms
    assert len(server.measured) <= 0.3 * len(POINTS)


def test_a_release_whose_labels_agree_too_little_never_wins(server: SimulatedServer) -> None:
    found = Descent(AXES, server.measure).run(START)
    assert found is not None and RELEASES[found[0]][1] >= AGREEMENT


def test_where_nothing_meets_the_bound_it_says_so_and_ends() -> None:
    server = SimulatedServer(0, noise=0.0)
    server.bound_ms = 1.0
    descent = Descent(AXES, server.measure)
    assert descent.run(START) is None
    assert 1 < len(server.measured) <= 0.3 * len(POINTS)


def test_a_spent_budget_leaves_the_best_so_far() -> None:
    server = SimulatedServer(0, noise=0.0)

    def measure(point: Point) -> Outcome:
        if len(server.measured) == 12:
            raise BudgetSpentError
        return server.measure(point)

    found = Descent(AXES, measure).run(START)
    assert len(server.measured) == 12
    assert found == min(server.measured, key=lambda point: server.truth(point).rank)


def test_the_pareto_front_is_what_no_other_beats_in_both() -> None:
    figures = {"a": (1, 90), "b": (2, 50), "c": (2, 60), "d": (3, 50), "e": (4, 10), "f": (math.inf, 1)}
    outcomes = {name: Outcome(feasible=True, cost=cost, p99_ms=p99) for name, (cost, p99) in figures.items()}
    assert pareto(outcomes) == ["a", "b", "e"]
