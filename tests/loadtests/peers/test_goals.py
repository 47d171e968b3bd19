"""`loadtests.peers.goals`: what each figure is taken from, and whether it is met."""

from __future__ import annotations

from typing import Any

import pytest

from loadtests.peers.goals import GOALS, evaluate, rivals
from tests.loadtests.made import duel, ours, point, server

BEST = {"default": False, "tuned": True}
NAMES = [goal.name for goal in GOALS]


def a_round(peak: float = 120, **changes: Any) -> dict[str, Any]:
    """Ours against one peer at its default, 30 requests/s, and one at its best, 80."""
    peers = {"default": server(30, memory_mib=500), "tuned": server(80, memory_mib=400)}
    rates = {name: 0.8 * found["peak_per_s"] for name, found in peers.items()}
    duels = {name: duel(peak, found["peak_per_s"]) for name, found in peers.items()}
    return peers | {"ours": ours(peak, rates) | {"duels": duels} | changes}


def goal(number: int, *rounds: dict[str, Any]) -> dict[str, Any]:
    return evaluate(list(rounds), BEST)[number]


def test_throughput_is_taken_in_turn_with_the_fastest_of_each_kind() -> None:
    assert goal(0, a_round())["median"] == pytest.approx(120 / 30)
    assert goal(0, a_round())["against"] == ["default"]
    assert goal(1, a_round())["median"] == pytest.approx(120 / 80)
    assert goal(1, a_round())["against"] == ["tuned"]


def test_of_several_rivals_the_one_that_does_best_in_turn_counts() -> None:
    each = a_round()
    each["ours"]["duels"]["default"] = duel(120, 90)  # slower than the other when its turn in the round came
    assert (goal(0, each)["median"], goal(0, each)["against"]) == (pytest.approx(120 / 90), ["default"])
    assert (goal(1, each)["median"], goal(1, each)["against"]) == (pytest.approx(120 / 90), ["default"])
    del each["ours"]["duels"]["default"]
    assert goal(0, each)["met"] is None and goal(1, each)["against"] == ["tuned"]


def test_a_machine_that_changes_its_pace_changes_no_ratio() -> None:
    each = a_round()
    each["ours"]["peak_per_s"] = 60.0  # a slow hour, long after the peers
    found = goal(0, each)
    assert (found["min"], found["median"], found["max"]) == pytest.approx((4, 4, 4))


def test_a_pair_in_which_somebody_answered_nothing_has_no_ratio() -> None:
    each = a_round()
    each["ours"]["duels"]["default"]["saturated"][0]["theirs"] = {"requests_per_s": 0.0, "failure": "no answers"}
    assert goal(0, each)["median"] == pytest.approx(4)


def test_ours_meets_the_fastest_and_the_quickest_in_turn() -> None:
    each = a_round()
    assert rivals(each, BEST) == ["default", "tuned"]
    each["slow"] = server(20, memory_mib=500)
    each["slow"]["closed"]["1"]["p50_ms"] = 1.0
    assert rivals(each, BEST | {"slow": False}) == ["default", "tuned", "slow"]
    assert rivals({}, {}) == []


def test_the_median_and_the_spread_are_over_the_rounds() -> None:
    found = goal(0, a_round(90), a_round(120), a_round(60))
    assert (found["min"], found["median"], found["max"]) == pytest.approx((2, 3, 4))
    assert found["met"] is True


def test_one_in_flight_is_compared_with_defaults_alone() -> None:
    found = goal(2, a_round())
    assert found["median"] == pytest.approx((1000 / 120) / (1000 / 30))
    assert (found["met"], found["against"]) == (True, ["default"])


def test_under_load_the_hardest_peer_counts() -> None:
    each = a_round()
    each["ours"]["at"]["default"] = point(24, 500)
    found = goal(3, each)
    assert found["against"] == ["default"]
    assert found["median"] == pytest.approx(1500 / each["default"]["open"]["0.8"]["p99_ms"])
    assert found["met"] is False


def test_a_p99_of_few_requests_is_none_and_a_failed_request_is_one_that_waited() -> None:
    few = a_round()
    for point_ in (few["default"]["open"]["0.8"], few["tuned"]["open"]["0.8"]):
        point_["requests"] = 99
    assert goal(3, few)["met"] is None
    failing = a_round()
    failing["ours"]["at"]["tuned"] |= {"error_rate": 0.02}
    assert goal(3, failing)["median"] == pytest.approx(15_000 / failing["tuned"]["open"]["0.8"]["p99_ms"])


def test_the_generators_share_of_the_cores_is_taken_from_the_bare_engine() -> None:
    found = goal(4, a_round(cores=2))
    assert found["median"] == pytest.approx(120 / (150 * (1 - 0.1 / 2)))
    assert (found["min"], found["max"]) == pytest.approx((0.9 * found["median"], 1.1 * found["median"]))
    silent = a_round(cores=2)
    silent["ours"]["bare"][0]["ours"] = {"requests_per_s": 0.0, "failure": "no answers"}
    assert goal(4, silent)["max"] == pytest.approx(found["max"])


def test_what_is_beyond_compute_is_taken_request_by_request() -> None:
    assert goal(5, a_round())["median"] == 0.7
    assert (goal(5, a_round())["min"], goal(5, a_round())["max"]) == (0.6, 0.9)
    assert goal(5, a_round())["met"] is True
    without = a_round()
    del without["ours"]["alone"]
    assert goal(5, without)["met"] is None and goal(7, without)["met"] is None


def test_memory_is_compared_with_the_smallest_and_the_tokenizer_with_the_engine() -> None:
    assert goal(6, a_round())["median"] == pytest.approx(350 / 400, rel=1e-6)
    assert goal(7, a_round())["median"] == 0.05


def test_a_bound_that_is_just_met_is_met() -> None:
    assert (goal(0, a_round(peak=90))["median"], goal(0, a_round(peak=90))["met"]) == (3.0, True)


@pytest.mark.parametrize("rounds", [[], [{"default": server(30, memory_mib=500)}]])
def test_without_ours_nothing_was_measured(rounds: list[dict[str, Any]]) -> None:
    assert [(found["goal"], found["median"], found["met"]) for found in evaluate(rounds, BEST)] == [
        (name, None, None) for name in NAMES
    ]


def test_without_peers_only_our_own_goals_are_measured() -> None:
    found = {each["goal"]: each["met"] for each in evaluate([{"ours": ours(100, {})}], {})}
    assert [name for name, met in found.items() if met is not None] == [NAMES[4], NAMES[5], NAMES[7]]
