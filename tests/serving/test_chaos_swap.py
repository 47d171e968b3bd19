"""Thirty swaps under traffic, every second one bad: no request fails, none is mixed, every bad release is refused."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from contract.command import UsageError
from contract.files import read_json
from tests.serving.chaos_swap import CHUNK, ChaosSwap, failure_bound, report, run
from tests.serving.faults import FAULTS
from tests.serving.swap_check import failures, growths, trend
from tests.serving.swap_record import add, begin, part_file, save


@pytest.mark.server
@pytest.mark.timeout(900)  # half a minute on a machine of its own, minutes on a crowded one
def test_thirty_swaps_in_two_pieces_are_noticed_by_no_client(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    options = partial(ChaosSwap, tiny=True, swaps=30, latency=False, output=output)
    first = run(options(seconds=0.001), tmp_path / "first")
    assert (first["done"], first["counts"]) == (CHUNK, {"publish": 1, "rollback": 1, "promote": 1, "refused": 3})
    assert read_json(part_file(output)) == first
    found = run(options(seconds=900), tmp_path / "second")
    assert found["wrong"] == []
    assert (found["done"], found["pieces"], found["failed"], found["mixed"]) == (30, 2, 0, 0)
    assert found["counts"] == {"publish": 5, "rollback": 5, "promote": 5, "refused": 15}
    assert found["requests"] > 1000
    assert found["restart_s"] > 0
    assert len(found["pss_mb"]) == sum(found["looks"]) == 30 / CHUNK
    finished = report(found)
    assert finished["release"] == "tiny"
    assert finished["bad_releases"] == 15 >= len(FAULTS)
    assert [missed for missed in finished["missed"] if "rollback" not in missed] == []  # a crowded machine may take its time
    happened = Counter(event.split()[0] for row in finished["timeline"] for event in row.get("event", "").split(", ") if event)
    assert happened == {"publish": 4, "rollback": 4, "promote": 4, "refused": 12}  # the second piece, which was the longer one
    assert sum(row["failed"] for row in finished["timeline"]) == 0
    assert not part_file(output).exists()


def test_the_bound_is_three_of_n_without_a_failure_and_above_what_failed_with_some() -> None:
    assert failure_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert failure_bound(8, 7759) == pytest.approx(14.43 / 7759, rel=0.001)


def piece(**values: object) -> dict[str, object]:
    counted = {"done": 6, "pieces": 1, "counts": {"publish": 1}, "requests": 10, "failed": 0, "mixed": 0, "latency": {}}
    return (
        counted
        | {"slowest_rollback_s": 0.5, "wrong": [], "looks": [1], "pss_mb": [1.0], "sequential_p50_ms": [2.0]}
        | {"timeline": []}
        | values
    )


def test_pieces_add_up(tmp_path: Path) -> None:
    path = part_file(tmp_path / "found.json")
    found = add(begin(path, "mine", 12), piece(latency={"capacity_per_s": 50.0}))
    save(path, found)
    assert begin(path, "mine", 12) == found
    total = add(found, piece(counts={"publish": 2, "refused": 3}, failed=1, wrong=["late"], slowest_rollback_s=0.25))
    assert (total["done"], total["pieces"], total["requests"], total["failed"]) == (12, 2, 20, 1)
    assert total["counts"] == {"publish": 3, "refused": 3}
    assert (total["pss_mb"], total["wrong"], total["slowest_rollback_s"]) == ([1.0, 1.0], ["late"], 0.5)
    assert total["latency"] == {"capacity_per_s": 50.0}
    long, short = ([{"t": t, "per_s": 1.0} for t in range(count)] for count in (9, 2))
    assert add(add(found, piece(timeline=long)), piece(timeline=short))["timeline"] == long


@pytest.mark.parametrize(("release", "swaps"), [("mine", 30), ("other", 12)])
def test_pieces_of_another_run_are_not_gone_on_with(tmp_path: Path, release: str, swaps: int) -> None:
    path = tmp_path / "found.part"
    save(path, add(begin(path, "mine", 12), piece()))
    with pytest.raises(UsageError, match=f"holds 6 of 12 swaps of mine, wanted are {swaps} of {release}"):
        begin(path, release, swaps)


def finished(**changes: object) -> dict[str, object]:
    """A run of two pieces of ten looks in which memory and cost wander, and a new server needs less than the last one."""
    wander = [0.0, 3.0, -2.0, 1.0, -3.0, 2.0, 0.0, -1.0, 3.0, -2.0]
    made = piece(swaps=1000, bad_releases=500, counts={"refused": 500}, flip_ratio=1.2, loading_ratio=4.9, looks=[10, 10])
    made |= {"pss_mb": [520 + one for one in wander] + [480 + one for one in wander]}
    made |= {"sequential_p50_ms": [20 + one for one in wander] * 2} | changes
    return made | {"growth": growths(made)}


def test_a_run_that_keeps_every_target_misses_nothing() -> None:
    assert failures(finished()) == []
    assert failures(finished(slowest_rollback_s=1.9, pss_mb=[500.0] * 20)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failed": 1}, "1 requests failed"),
        ({"mixed": 2}, "2 requests mixed"),
        ({"wrong": ["late"]}, "late"),
        ({"counts": {"refused": 499}}, "499 of 500 bad releases refused"),
        ({"slowest_rollback_s": 2.1}, "slowest_rollback_s is 2.1, allowed 2"),
        ({"flip_ratio": 1.26}, "flip_ratio is 1.26, allowed 1.25"),
        ({"loading_ratio": 5.1}, "loading_ratio is 5.1, allowed 5"),
        ({"pss_mb": [500.0 + 5 * (look % 10) for look in range(20)]}, "pss_mb grew by 40 over a piece, allowed 26.1"),
        ({"sequential_p50_ms": [20.0 + (look % 10) for look in range(20)]}, "sequential_p50_ms grew by 8 over a piece"),
    ],
)
def test_what_a_run_missed_is_named(changes: dict[str, object], said: str) -> None:
    assert [one[: len(said)] for one in failures(finished(**changes))] == [said]


def test_growth_is_that_within_pieces_and_comes_with_its_noise() -> None:
    grown, error, chance = trend([10.0, 11.0, 12.0, 13.0, 0.0, 1.0, 2.0, 3.0], [4, 4])
    assert grown == pytest.approx(2.0)
    assert error == pytest.approx(0.0)
    assert chance == pytest.approx(0.0)
    assert trend([10.0, 99.0], [1, 1]) == (0.0, math.inf, math.inf)


@pytest.mark.parametrize("looks", [5, 80])
def test_chance_passes_for_growth_in_one_run_of_forty_however_few_looks_it_has(looks: int) -> None:
    noise = random.Random(0)
    found = [trend([noise.gauss(100, 10) for _ in range(looks)], [looks]) for _ in range(2000)]
    assert 0.015 < sum(grown > chance for grown, _, chance in found) / len(found) < 0.035


def test_one_swap_is_no_chaos_and_a_piece_needs_a_file_and_time() -> None:
    with pytest.raises(UsageError, match="--swaps is 1"):
        ChaosSwap(swaps=1)
    with pytest.raises(UsageError, match=r"--seconds is 60\.0; it must be above 0, and --output is needed"):
        ChaosSwap(seconds=60.0)
    with pytest.raises(UsageError, match="--seconds is 0"):
        ChaosSwap(seconds=0, output=Path("found.json"))
