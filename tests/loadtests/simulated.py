"""A simulated deployment for tests of the search: every setting has a cost and a p99, as a seed draws the machine."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from contract.tensors import BUCKET_LENGTHS, MAX_BATCH_SIZE
from loadtests.deployment import Setting
from loadtests.descent import Outcome
from loadtests.scenario import Scenario
from loadtests.trial import Trial

CORES = 2
ROW_MS = (20.0, 11.0, 9.0, 30.0)
"""Milliseconds of one core a text, of a slow and some faster releases; drawn in any order."""


class SimulatedDeployment:
    """A queue before batching instances, each with its threads, on two cores."""

    def __init__(self, seed: int, releases: list[Path]) -> None:
        drawn = np.random.default_rng(seed)
        rows = drawn.permutation(ROW_MS)[: len(releases)] / drawn.uniform(1, 3)
        self._row_ms = dict(zip(map(str, releases), rows.tolist(), strict=True))
        self._rate = CORES * 1000 / min(self._row_ms.values()) * float(drawn.uniform(0.1, 0.85))
        self._bound_ms = float(drawn.uniform(30, 200))
        self._serial = float(drawn.uniform(0.05, 0.3))  # of the work, which threads do not share (Amdahl)
        self._call_ms = float(drawn.uniform(0.5, 5))  # a run costs this, however many rows are in it
        self._alike = float(drawn.uniform(0.2, 0.9))  # of the requests that share a fine bucket, and so a batch
        self._padding = float(drawn.uniform(1.0, 1.15))  # by which coarse buckets are dearer
        self.measured: list[Setting] = []

    def __call__(self, setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        """A trial, noted down."""
        self.measured.append(setting)
        outcome = self.truth(setting)
        return Trial(outcome=outcome, reason="" if outcome.feasible else "too slow", result=None)

    def truth(self, setting: Setting) -> Outcome:
        """What a setting costs and how slow it is."""
        fine = setting.buckets == BUCKET_LENGTHS
        row_ms = self._row_ms[setting.release] * (1 if fine else self._padding)
        rate = self._rate / 1000 * (self._alike if fine else 1)  # a millisecond, that may share a batch
        limit, delay_ms = setting.batch or MAX_BATCH_SIZE, setting.delay_us / 1000
        batch = min(limit, 1 + rate * delay_ms)
        parallel = self._serial + (1 - self._serial) / setting.threads
        crowding = max(1.0, setting.instances * setting.threads / CORES)  # more threads than cores take turns
        run_ms = (self._call_ms + batch * row_ms * parallel) * crowding
        load = self._rate / 1000 * run_ms / batch / setting.instances
        waste = 1 + 0.1 * (setting.threads - 1) * self._serial  # threads that wait for the serial part
        cost = self._rate / 1000 * (self._call_ms / batch + row_ms) * waste + 0.02 * setting.instances
        if load >= 0.98 or cost >= 0.98 * CORES:
            return Outcome(feasible=False, cost=math.inf, p99_ms=math.inf, miss=1e4 * load)
        queue = 2.3 * load ** math.sqrt(2 * setting.instances + 2) / (setting.instances * (1 - load))
        p99_ms = min(delay_ms, (limit - 1) / rate) + run_ms * (1 + queue)
        return Outcome(feasible=p99_ms <= self._bound_ms, cost=cost, p99_ms=p99_ms, miss=p99_ms / self._bound_ms)
