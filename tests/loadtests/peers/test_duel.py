"""`loadtests.peers.duel`: loads in turn, and what their ratio is."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest

from loadtests.peers import duel
from loadtests.peers.duel import busiest, ratios, rotated, take_pairs


def test_pairs_take_turns_in_beginning_and_keep_what_ratios_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duel, "PAIRS", 3)
    taken: list[str] = []

    def side(name: str, per_s: float, turn: int) -> dict[str, Any]:
        taken.append(f"{name} {turn}")
        return {"users": 64, "requests_per_s": per_s, "quantiles_ms": {}}

    pairs = take_pairs("ours and theirs", partial(side, "ours", 90.0), partial(side, "theirs", 30.0))
    assert taken == ["ours 0", "theirs 0", "theirs 1", "ours 1", "ours 2", "theirs 2"]
    assert pairs[1] == {"ours": {"users": 64, "requests_per_s": 90.0}, "theirs": {"users": 64, "requests_per_s": 30.0}}
    assert ratios(pairs, "requests_per_s") == [3.0] * 3


def test_each_turn_begins_elsewhere_and_keeps_the_order() -> None:
    items = list(range(12))
    turns = [rotated(items, turn) for turn in range(duel.PAIRS)]
    assert turns[0] == items and len({tuple(each) for each in turns}) == duel.PAIRS
    for each in turns:
        assert sorted(each) == items and all((after - before) % 12 == 1 for before, after in itertools.pairwise(each))
    assert rotated(items, duel.PAIRS) == items and rotated([1], 3) == [1]


def test_a_side_without_an_answer_makes_no_ratio() -> None:
    answered: dict[str, Any] = {"requests_per_s": 30.0, "p50_ms": 10.0}
    silent: dict[str, Any] = {"requests_per_s": 0.0, "failure": "no answers"}
    pairs = [{"ours": answered, "theirs": silent}, {"ours": silent, "theirs": answered}, {"ours": answered, "theirs": answered}]
    assert ratios(pairs, "requests_per_s") == [1.0]
    assert ratios(pairs, "p50_ms") == [1.0]


def test_a_server_is_busiest_where_it_answers_most() -> None:
    assert busiest({"1": {"requests_per_s": 20.0}, "32": {"requests_per_s": 41.0}, "64": {"requests_per_s": 40.0}}) == 32
