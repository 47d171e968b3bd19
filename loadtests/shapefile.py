"""Locust's load over time, as a scenario says it; a second locustfile beside `loadtests/locustfile.py`.

    locust -f loadtests/locustfile.py,loadtests/shapefile.py GrpcUser --scenario loadtests/scenarios/spike.toml --headless

A file of its own, since Locust lets a shape decide over users and time wherever it sees one.
"""

from __future__ import annotations

from locust import LoadTestShape

from pathlib import Path

from loadtests.locust_record import CUT_S, RECORD
from loadtests.scenario import Scenario, read_scenario


class ScenarioShape(LoadTestShape):
    """Follows `--scenario`: the warm-up, the measured window, and the window's last level until its requests are answered."""

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
        second = self.get_run_time() - scenario.warmup_s  # type: ignore[no-untyped-call]
        if not self._warm and second >= 0:
            self.runner.stats.reset_all()
            RECORD.begin_window()
            self._warm = True
        if second >= scenario.duration_s + CUT_S:
            return None
        users = scenario.load.users_at(min(second, scenario.duration_s * (1 - 1e-9)), scenario.duration_s) or 1
        return users, float(users)
