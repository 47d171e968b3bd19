"""Locust's load over time, as a scenario says it; a second locustfile beside `loadtests/locustfile.py`.

    locust -f loadtests/locustfile.py,loadtests/shapefile.py GrpcUser --scenario loadtests/scenarios/spike.toml --headless

A file of its own, since Locust lets a shape decide over users and time wherever it sees one.
"""

from __future__ import annotations

from locust import LoadTestShape

from pathlib import Path

from loadtests.scenario import Scenario, read_scenario

REPORT_S = 3.0
"""Workers tell the master their figures so often: what came in this long before a reset may be told after it."""


def users_at(scenario: Scenario, second: float) -> int | None:
    """Users at a time since the start, the warm-up at the first level included; None when the test is over."""
    after = second - scenario.warmup_s - REPORT_S
    for seconds, share in scenario.load.levels(scenario.duration_s):
        if after < seconds:
            return max(1, round(share * scenario.load.users))
        after -= seconds
    return None


class ScenarioShape(LoadTestShape):
    """Follows `--scenario`; the figures of the warm-up are thrown away."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scenario: Scenario | None = None
        self._warm = False

    def tick(self) -> tuple[int, float] | None:
        """(users, users started per second), once a second; None ends the test."""
        if self.runner is None or self.runner.environment.parsed_options is None:
            raise RuntimeError("this file is for the locust command, which parses its options")
        if self._scenario is None:
            self._scenario = read_scenario(Path(self.runner.environment.parsed_options.scenario))
        second = self.get_run_time()  # type: ignore[no-untyped-call]
        if not self._warm and second >= self._scenario.warmup_s + REPORT_S:
            self.runner.stats.reset_all()
            self._warm = True
        users = users_at(self._scenario, second)
        return None if users is None else (users, float(users))
