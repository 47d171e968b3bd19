"""`builders.placement`: what is tried on a machine, and the rule that takes one of them."""

from __future__ import annotations

from typing import Any

import pytest

from builders.placement import Placement, Trial, as_json, choose_placement, find_placements, table


def placed(*pairs: tuple[int, int]) -> list[Placement]:
    return [Placement(instances, threads) for instances, threads in pairs]


@pytest.mark.parametrize(
    ("instances", "threads", "cores", "found"),
    [
        ("auto", "auto", 1, placed((1, 1))),
        ("auto", "auto", 2, placed((1, 1), (1, 2), (2, 1))),
        ("auto", "auto", 4, placed((1, 2), (1, 4), (2, 1), (2, 2), (4, 1))),
        ("auto", "auto", 6, placed((1, 3), (1, 6), (2, 2), (2, 3), (3, 1), (3, 2), (6, 1))),
        (1, "auto", 4, placed((1, 1), (1, 2), (1, 4))),
        (3, "auto", 4, placed((3, 1))),
        ("auto", 2, 4, placed((1, 2), (2, 2))),
        ("auto", 0, 4, placed((1, 4), (2, 2), (4, 1))),
        (2, 0, 5, placed((2, 2))),
        (2, 1, 8, placed((2, 1))),
    ],
)
def test_what_is_tried(instances: Any, threads: Any, cores: int, found: list[Placement]) -> None:
    assert find_placements(instances, threads, cores) == found


def test_a_large_machine_is_not_given_an_instance_a_core() -> None:
    found = find_placements("auto", "auto", 64)
    assert max(one.instances for one in found) == 8
    assert len(found) == 8


def trials(**measured: tuple[float, float]) -> dict[Placement, Trial]:
    """`i2x1=(texts/s, ms alone)`; the rounds around are 1 % off."""
    found = {}
    for name, (speed, lone) in measured.items():
        instances, threads = map(int, name.removeprefix("i").split("x"))
        found[Placement(instances, threads)] = Trial([speed, speed * 0.99, speed * 1.01], [lone, lone * 0.99, lone * 1.01])
    return found


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        (trials(i1x1=(60, 12), i1x2=(100, 8), i2x1=(120, 11)), Placement(2, 1)),
        (trials(i1x1=(60, 16), i1x2=(100, 8), i2x1=(120, 16)), Placement(1, 2)),  # twice as slow alone
        (trials(i1x2=(100, 8), i2x1=(104, 8)), Placement(1, 2)),  # as good as equal: fewer instances
        (trials(i1x1=(99, 11), i1x2=(100, 8)), Placement(1, 2)),  # and then the quicker one
        (trials(i1x4=(100, 5), i2x2=(130, 6), i4x1=(133, 7)), Placement(2, 2)),
    ],
    ids=["faster", "slow alone", "a tie", "a tie of threads", "a tie of instances"],
)
def test_the_rule(measured: dict[Placement, Trial], chosen: Placement) -> None:
    assert choose_placement(measured) == chosen


def test_the_table_is_sorted_by_speed_and_says_why_not() -> None:
    measured = trials(i1x2=(100, 8), i2x1=(120, 16))
    lines = table(measured, choose_placement(measured)).splitlines()
    assert lines[2] == "| 2 x 1 threads | 120.0 (118.8 to 121.2) | 16.0 (15.8 to 16.2) | 2.00 times as slow alone |"
    assert lines[3] == "| 1 x 2 threads | 100.0 (99.0 to 101.0) | 8.0 (7.9 to 8.1) | chosen |"


def test_the_manifest_gets_the_choice_the_rule_and_every_figure() -> None:
    measured = trials(i1x2=(100, 8))
    (chosen,) = measured
    stated = as_json(measured, chosen)
    assert stated["tried"] == [{"instances": 1, "threads": 2, "texts_per_s": [100, 99, 101], "lone_ms": [8, 7.92, 8.08]}]
    assert (stated["instances"], stated["threads"], stated["lone_factor"]) == (1, 2, 1.5)
    assert as_json({}, chosen) == {"instances": 1, "threads": 2}
