"""`loadtests.axes`: values to places, and round ticks."""

from __future__ import annotations

import math

import pytest

from loadtests.axes import Axis, fitted, round_step, show


def test_values_lie_between_the_ends_in_proportion() -> None:
    axis = Axis(10, 30, 100, 300)
    assert [axis.place(value) for value in (10, 15, 30)] == [100, 150, 300]


def test_what_is_beyond_lies_on_the_end() -> None:
    assert (Axis(0, 1, 50, 0).place(2), Axis(0, 1, 50, 0).place(-1)) == (0, 50)


def test_a_logarithmic_axis_has_its_decades_at_equal_distances() -> None:
    axis = Axis(1, 1000, 0, 300, log=True)
    assert [axis.place(value) for value in (1, 10, 100, 1000)] == pytest.approx([0, 100, 200, 300])
    assert axis.place(0) == 0


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [([0.3, 7.2], 0, 8), ([0, 100], 0, 100), ([3], 0, 3), ([-4, 9], -5, 10), ([0, 0], 0, 1), ([1e-4, 9e-4], 0, 0.001)],
)
def test_a_linear_axis_ends_on_round_numbers_and_holds_everything(values: list[float], low: float, high: float) -> None:
    axis = fitted(values, 0, 100)
    assert (axis.low, axis.high) == pytest.approx((low, high))


def test_an_axis_need_not_begin_at_zero() -> None:
    axis = fitted([78.5, 88.9], 0, 100, from_zero=False)
    assert 70 <= axis.low <= 78.5 and axis.high >= 88.9


@pytest.mark.parametrize(("values", "low", "high"), [([3, 420], 2, 500), ([10, 100], 10, 200), ([0.7], 0.5, 1)])
def test_a_logarithmic_axis_ends_on_1_2_or_5(values: list[float], low: float, high: float) -> None:
    axis = fitted(values, 0, 100, log=True)
    assert (axis.low, axis.high) == pytest.approx((low, high))


@pytest.mark.parametrize(("values", "log"), [([], False), ([math.nan], False), ([1, math.inf], False), ([0, 1], True)])
def test_values_that_no_axis_holds_are_refused(values: list[float], log: bool) -> None:
    with pytest.raises(ValueError, match="an axis needs finite values"):
        fitted(values, 0, 1, log=log)


@pytest.mark.parametrize("span", [0.003, 0.7, 1, 3, 9.99, 10, 47, 12345])
def test_steps_are_round_and_give_three_to_six_ticks(span: float) -> None:
    step = round_step(span)
    assert round(step / 10 ** math.floor(math.log10(step)), 6) in {1, 2, 2.5, 5}
    assert 2 <= span / step <= 5.000001


@pytest.mark.parametrize("values", [[0, 7], [3, 420], [0.2, 0.9], [10, 11]])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_rise_within_the_axis(values: list[float], log: bool) -> None:
    axis = fitted([value + 0.1 for value in values], 0, 100, log=log)
    ticks = axis.ticks()
    assert len(ticks) >= 2 and ticks == sorted(set(ticks))
    assert axis.low * 0.999 <= ticks[0] and ticks[-1] <= axis.high * 1.001


def test_numbers_are_shown_short() -> None:
    assert [show(value) for value in (0, 0.25, 12.5, 999.96, 1234.5, 2_000_000)] == [
        "0",
        "0.25",
        "12.5",
        "1000",
        "1,234",
        "2,000,000",
    ]
