"""`builders.lengths`: the dynamic programme against every subset, and what a plan says of the texts."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from builders.lengths import (
    Curve,
    activation_bytes,
    candidate_lengths,
    choose_lengths,
    evaluate,
    fit_curve,
    measure_costs,
    plan_record,
)
from contract.command import UsageError
from training.bert_config import BertConfig

CURVE = Curve(0.3, 0.02, 0.0004)


def brute_force(lengths: list[int], candidates: list[int], count: int, cost: Curve) -> float:
    """The least cost over every choice of at most `count` candidates that ends with the longest."""
    histogram = Counter(lengths)
    *shorter, longest = candidates
    choices = (
        [*chosen, longest] for size in range(min(count, len(candidates))) for chosen in itertools.combinations(shorter, size)
    )
    return min(evaluate(histogram, choice, cost).cost for choice in choices)


@pytest.mark.parametrize("seed", range(40))
def test_the_chosen_lengths_cost_what_the_best_subset_costs(seed: int) -> None:
    generator = random.Random(seed)
    longest = generator.randint(3, 24)
    lengths = [min(longest, int(generator.lognormvariate(1.8, 0.8)) + 1) for _ in range(generator.randint(1, 60))]
    candidates = candidate_lengths(longest, generator.randint(1, 3))
    cost = Curve(generator.random(), generator.random(), generator.choice([0.0, generator.random() / 10]))
    for count in range(1, 6):
        plan = choose_lengths(lengths, candidates, count, cost)
        assert plan.cost == pytest.approx(brute_force(lengths, candidates, count, cost))
        assert plan.lengths == sorted(set(plan.lengths))
        assert len(plan.lengths) <= count
        assert plan.lengths[-1] == longest
        assert set(plan.lengths) <= set(candidates)


def test_more_lengths_never_cost_more_and_enough_of_them_leave_no_padding() -> None:
    lengths = [3, 3, 5, 8, 8, 8, 13]
    costs = [choose_lengths(lengths, range(1, 14), count, CURVE).cost for count in range(1, 8)]
    assert costs == sorted(costs, reverse=True)
    best = choose_lengths(lengths, range(1, 14), 4, CURVE)
    assert best.lengths == [3, 5, 8, 13]
    assert best.waste == 0
    assert best.cost == pytest.approx(best.unpadded_cost)


def test_the_figures_of_a_plan_are_those_of_its_texts() -> None:
    plan = evaluate({2: 3, 5: 1}, [4, 8], CURVE)
    assert (plan.texts, plan.tokens, plan.padded_tokens) == (4, 11, 20)
    assert plan.waste == pytest.approx(9 / 20)
    assert plan.cost == pytest.approx(3 * CURVE(4) + CURVE(8))
    assert plan.unpadded_cost == pytest.approx(3 * CURVE(2) + CURVE(5))


def test_a_dear_overhead_does_not_change_which_lengths_are_best_but_a_square_does() -> None:
    lengths = [4] * 10 + [10] * 10 + [30] * 2
    cheap, dear = (choose_lengths(lengths, range(1, 31), 2, Curve(overhead, 1, 0)).lengths for overhead in (0, 100))
    assert cheap == dear == [10, 30]
    assert choose_lengths([*lengths, *[29] * 30], range(1, 31), 2, Curve(0, 1, 0)).lengths == [10, 30]


@pytest.mark.parametrize(
    ("lengths", "candidates", "count", "message"),
    [
        ([], [1], 1, "no texts"),
        ([9], [4, 8], 1, "reach from 1 to 8"),
        ([0], [4], 1, "0 to 0 tokens"),
        ([1], [], 1, "wanted rising ones"),
        ([1], [4, 4], 1, "wanted rising ones"),
        ([1], [4], 0, "--buckets is 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(lengths: list[int], candidates: list[int], count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_lengths(lengths, candidates, count, CURVE)


def test_candidates_are_multiples_and_the_longest() -> None:
    assert candidate_lengths(20, 8) == [8, 16, 20]
    assert candidate_lengths(16, 8) == [8, 16]
    assert candidate_lengths(5, 8) == [5]


def test_a_curve_is_found_again_from_its_own_points() -> None:
    curve = fit_curve({tokens: CURVE(tokens) for tokens in (4, 16, 64, 256, 512)})
    assert curve(100) == pytest.approx(CURVE(100), rel=1e-3)
    assert curve.scaled_error({100: CURVE(100) * 1.25}) == pytest.approx(0.2, rel=1e-2)


def test_no_term_of_a_curve_is_negative() -> None:
    curve = fit_curve({16: 1.0, 32: 1.0, 64: 0.9, 128: 1.1})
    assert min(curve.overhead, curve.linear, curve.attention) >= 0


@pytest.mark.parametrize("table", [{}, {1: 1.0, 2: 2.0}, {1: 1.0, 2: 0.0, 3: 1.0}, {0: 1.0, 2: 1.0, 3: 1.0}])
def test_a_table_of_too_little_is_refused(table: dict[int, float]) -> None:
    with pytest.raises(UsageError, match="three lengths or more"):
        fit_curve(table)


def test_timings_are_medians_of_rounds_taken_in_turn_the_first_left_out() -> None:
    calls: list[int] = []
    given = iter([100.0, 100.0, 1.0, 5.0, 9.0, 6.0, 2.0, 7.0])

    def run(tokens: int) -> float:
        calls.append(tokens)
        return next(given)

    assert measure_costs(run, [16, 32], rounds=3) == {16: 2.0, 32: 6.0}
    assert calls == [16, 32] * 4


def test_memory_grows_with_the_square_of_the_length_in_the_end() -> None:
    config = BertConfig(hidden_size=768, intermediate_size=3072)
    assert activation_bytes(config, 8, 32, 2) == 8 * 32 * (2 * 768 + 2 * 3072) * 2
    assert activation_bytes(config, 8, 4096, 2) > 3.9 * activation_bytes(config, 8, 2048, 2)


def test_a_record_holds_the_profiles() -> None:
    record = plan_record(evaluate({2: 1, 7: 1}, [4, 8], CURVE), best_batch=4, max_batch=64)
    assert record["lengths"] == [4, 8]
    assert [profile["input_ids"]["min"] for profile in record["profiles"]] == [[1, 1], [1, 5]]
    assert record["profiles"][1]["attention_mask"] == {"min": [1, 5], "opt": [4, 8], "max": [64, 8]}
