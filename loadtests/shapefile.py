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
        scenario = self._scenario
        second = self.get_run_time() - scenario.warmup_s - REPORT_S  # type: ignore[no-untyped-call]
        if not self._warm and second >= 0:
            self.runner.stats.reset_all()
            self._warm = True
        users = scenario.load.users_at(second, scenario.duration_s)
        return None if users is None else (users, float(users))
