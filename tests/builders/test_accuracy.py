"""`builders.accuracy`: a real loss is caught, noise is not, and the test is McNemar's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from builders.accuracy import Accuracy, compare_accuracy
from builders.build import ROUNDED_TEXTS
from builders.parity import Float32


def one_hot(classes: list[int]) -> Float32:
    return np.eye(3, dtype=np.float32)[classes]


def accuracy(*, rows: int, lost: int, won: int) -> Accuracy:
    """Of `rows` rows that the checkpoint answers rightly but for those won."""
    before = [1] * won + [0] * (rows - won)
    after = [0] * (rows - lost) + [1] * lost
    return compare_accuracy(one_hot(after), one_hot(before), [0] * rows)


def test_counts_are_those_of_the_rows() -> None:
    truth, before, after = [0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0], [0, 2, 2, 0, 1, 1]
    found = compare_accuracy(one_hot(after), one_hot(before), truth)
    assert (found.rows, found.checkpoint, found.engine) == (6, 3 / 6, 4 / 6)
    assert (found.flips, found.lost, found.won) == (4, 1, 2)
    assert found.p_value == pytest.approx(1.0)
    assert found.noise == pytest.approx(np.sqrt(3) / 6)
    assert found.failures == []


@pytest.mark.parametrize(("lost", "won"), [(5, 0), (12, 3), (3, 3), (40, 20), (0, 1)])
def test_the_p_value_is_the_exact_two_sided_binomial_one(lost: int, won: int) -> None:
    found = accuracy(rows=200, lost=lost, won=won)
    assert found.p_value == pytest.approx(float(binomtest(lost, lost + won).pvalue))


def test_equal_answers_leave_nothing_to_test() -> None:
    found = compare_accuracy(one_hot([0, 1]), one_hot([0, 1]), [0, 0])
    assert (found.p_value, found.flips, found.noise, found.failures) == (1.0, 0, 0.0, [])


@pytest.mark.parametrize(("rows", "lost", "won"), [(10_000, 30, 0), (10_000, 0, 500), (100, 5, 0), (100, 3, 2), (4999, 60, 41)])
def test_a_drop_within_0_3_points_or_on_few_rows_within_chance_passes(rows: int, lost: int, won: int) -> None:
    assert accuracy(rows=rows, lost=lost, won=won).failures == []


@pytest.mark.parametrize(
    ("rows", "lost", "won"), [(10_000, 31, 0), (10_000, 140, 100), (5000, 60, 41), (100, 6, 0), (1000, 40, 20)]
)
def test_a_larger_drop_fails_and_says_how_large(rows: int, lost: int, won: int) -> None:
    (failure,) = accuracy(rows=rows, lost=lost, won=won).failures
    assert failure.startswith(f"accuracy falls by {100 * (lost - won) / rows:.2f} points")
    assert "allowed 0.3" in failure


def refused(*, rows: int, drop: float, moved: float) -> float:
    """Share of 1000 engines that fail, of those that lose `drop` of all rows and, both ways together, move `moved` of them."""
    lost, won = (moved + drop) / 2, (moved - drop) / 2
    drawn = np.random.default_rng(0).multinomial(rows, [lost, won, 1 - lost - won], size=1000)[:, :2]
    pairs, times = np.unique(drawn, axis=0, return_counts=True)
    failed = [bool(accuracy(rows=rows, lost=lost, won=won).failures) for lost, won in pairs.tolist()]
    return float(np.average(failed, weights=times))


def test_the_rows_that_a_rounding_engine_is_compared_on_tell_a_loss_of_one_point_from_none() -> None:
    assert refused(rows=ROUNDED_TEXTS, drop=0.01, moved=0.02) > 0.8
    assert refused(rows=ROUNDED_TEXTS, drop=0.0, moved=0.015) < 0.04
    assert refused(rows=256, drop=0.01, moved=0.02) < 0.2  # why they are more


def test_the_line_for_people_names_both_accuracies_and_the_test() -> None:
    said = accuracy(rows=200, lost=1, won=2).describe()
    assert "on 200 held-out rows: engine 99.50%, checkpoint 99.00%; 3 labels differ (1 lost, 2 won, McNemar p 1)" in said
