"""`training.split`: nothing in two parts, every class in each, shares kept, everything drawn from the seed."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from tests.training.csv_files import read, write_csv
from training.datasets import Dataset, group_of
from training.split import Split, check_shares, deal_rows, hash_rows, split_dataset


def make_dataset(labels: list[int], groups: list[str], texts: list[str] | None = None) -> Dataset:
    """A data set of these rows."""
    names = [f"class {number}" for number in range(max(labels) + 1)]
    return Dataset("made up", texts or [f"text {row}" for row in range(len(labels))], labels, names, groups)


def grouped_dataset(rows: int = 1000, largest: int = 12) -> Dataset:
    """Three classes of unequal size in groups of 1 to `largest` rows."""
    generator = random.Random(0)
    labels: list[int] = []
    groups: list[str] = []
    while len(labels) < rows:
        label, size = generator.choices([0, 1, 2], weights=[6, 3, 1])[0], generator.randint(1, largest)
        groups += [f"group {len(groups)}"] * size
        labels += [label] * size
    return make_dataset(labels, groups)


def split(dataset: Dataset, **options: Any) -> Split:
    """`split_dataset` with the defaults of the command."""
    return split_dataset(dataset, **({"validation_share": 0.1, "test_share": 0.2, "train_rows": None, "seed": 0} | options))


def test_every_row_is_in_exactly_one_part() -> None:
    dataset = grouped_dataset()
    parts = split(dataset)
    assert sorted(parts.train + parts.validation + parts.test) == list(range(len(dataset.texts)))


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts(seed: int) -> None:
    dataset = grouped_dataset()
    parts = split(dataset, seed=seed)
    train, validation, test = ({dataset.groups[row] for row in rows} for rows in (parts.train, parts.validation, parts.test))
    assert not train & validation
    assert not train & test
    assert not validation & test


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.3, 0.05), (0.25, 0.5)])
def test_each_class_has_its_share_of_each_part_to_within_one_group(seed: int, shares: tuple[float, float]) -> None:
    dataset, largest = grouped_dataset(), 12
    parts = split(dataset, seed=seed, validation_share=shares[0], test_share=shares[1])
    for label, total in Counter(dataset.labels).items():
        for rows, share in ((parts.validation, shares[0]), (parts.test, shares[1])):
            assert abs(sum(dataset.labels[row] == label for row in rows) - total * share) <= largest


def test_single_texts_are_split_by_exact_shares() -> None:
    labels = [0] * 100 + [1] * 40
    parts = split(make_dataset(labels, [f"text {row}" for row in range(140)]))
    counts = [Counter(labels[row] for row in rows) for rows in (parts.train, parts.validation, parts.test)]
    assert counts == [{0: 70, 1: 28}, {0: 10, 1: 4}, {0: 20, 1: 8}]


def test_repeated_texts_stay_together_even_under_two_labels() -> None:
    texts = [f"text {number % 30}" for number in range(120)]
    labels = [number // 15 % 2 if number < 60 else number % 2 for number in range(120)]
    both = {text for text in texts if len({label for label, other in zip(labels, texts, strict=True) if other == text}) == 2}
    assert len(both) > 5, "too few texts under two labels to show anything"
    for seed in range(10):
        parts = split(make_dataset(labels, texts, texts), seed=seed)
        found = [{texts[row] for row in rows} for rows in (parts.train, parts.validation, parts.test)]
        assert sum(map(len, found)) == 30
        assert set.union(*found) == set(texts)


def test_the_same_seed_gives_the_same_split_and_another_one_another() -> None:
    dataset = grouped_dataset()
    assert split(dataset) == split(dataset)
    assert len({tuple(sorted(split(dataset, seed=seed).test)) for seed in range(5)}) == 5
    assert split(dataset).train != sorted(split(dataset).train)


def test_a_cap_takes_a_random_part_and_not_the_head() -> None:
    labels = [0] * 500 + [1] * 500  # in order of the class, as many files are
    dataset = make_dataset(labels, [f"text {row}" for row in range(1000)])
    whole, capped = split(dataset), split(dataset, train_rows=100)
    assert len(capped.train) == 100
    assert set(capped.train) < set(whole.train)
    assert (capped.validation, capped.test) == (whole.validation, whole.test)
    assert 30 <= Counter(labels[row] for row in capped.train)[1] <= 70
    assert max(capped.train) > 900
    assert split(dataset, train_rows=100_000) == whole


@pytest.mark.parametrize("texts", [1, 2])
def test_a_class_of_too_few_texts_is_named(texts: int) -> None:
    dataset = make_dataset([0] * 10 + [1] * texts * 4, [f"a{n}" for n in range(10)] + [f"b{n}" for n in range(texts)] * 4)
    with pytest.raises(UsageError, match=rf"class 'class 1' has {texts} distinct text\(s\); at least 3 are needed"):
        split(dataset)


def test_a_class_whose_every_text_occurs_first_under_another_label_is_named() -> None:
    texts = [f"text {number}" for number in range(10)]
    with pytest.raises(UsageError, match=r"class 'class 1' has 0 distinct text\(s\)"):
        split(make_dataset([0] * 10 + [1] * 3, texts + texts[:3]))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (100, 1, 1), (1, 100, 1), (1, 1, 100), (50, 50, 50)])
@pytest.mark.parametrize("shares", [(0.1, 0.2), (0.05, 0.9), (0.9, 0.05)])
def test_three_groups_give_one_to_each_part_whatever_their_sizes(
    sizes: tuple[int, int, int], shares: tuple[float, float]
) -> None:
    groups = [name for name, size in zip("abc", sizes, strict=True) for _ in range(size)]
    dataset = make_dataset([0] * len(groups) + [1] * 30, groups + [f"other {number}" for number in range(30)])
    for seed in range(6):
        parts = split(dataset, validation_share=shares[0], test_share=shares[1], seed=seed)
        for rows in (parts.train, parts.validation, parts.test):
            assert {dataset.labels[row] for row in rows} == {0, 1}


def test_texts_that_differ_in_case_and_white_space_stay_together(tmp_path: Path) -> None:
    shapes = ("Text number %d", "text number %d", " TEXT\tnumber  %d\n", "tExt number %d ")
    rows = [(shapes[copy] % number, str(number % 2)) for number in range(40) for copy in range(4)]
    dataset = read(write_csv(tmp_path / "a.csv", [("review", "stars"), *rows]))
    assert len(set(dataset.texts)) == 160
    for seed in range(5):
        parts = split(dataset, seed=seed)
        found = [{group_of(dataset.texts[row]) for row in rows} for rows in (parts.train, parts.validation, parts.test)]
        assert sum(map(len, found)) == len(set.union(*found)) == 40


def test_texts_that_are_the_same_but_for_case_count_as_one_of_a_class(tmp_path: Path) -> None:
    rows = [(f"text {number}", "1") for number in range(10)] + [("rare", "2"), ("Rare", "2"), ("rare ", "2"), ("other", "2")]
    with pytest.raises(UsageError, match=r"class '2' has 2 distinct text\(s\); at least 3 are needed, one for each part"):
        split(read(write_csv(tmp_path / "a.csv", [("review", "stars"), *rows])))


def test_two_parts_need_only_two_groups_and_hold_every_row() -> None:
    dataset = make_dataset([0, 0, 1, 1], list("abcd"))
    rest, test = deal_rows(dataset, [0.5], seed=0)
    assert sorted(rest + test) == [0, 1, 2, 3]
    assert [sorted(dataset.labels[row] for row in part) for part in (rest, test)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("shares", [(0.0, 0.2), (0.1, 0.0), (0.5, 0.5), (-0.1, 0.2)])
def test_shares_that_leave_a_part_empty_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=f"--validation-share {shares[0]} and --test-share {shares[1]} must be above 0"):
        check_shares(*shares)
    check_shares(0.1, 0.2)


def test_the_hash_of_a_part_tells_texts_labels_and_their_order_apart() -> None:
    dataset = make_dataset([0, 1, 0, 1], list("abcd"), ["w", "x", "y", "z"])
    assert hash_rows(dataset, [0, 1]) == hash_rows(make_dataset([0, 1], list("ef"), ["w", "x"]), [0, 1])
    others = [
        hash_rows(dataset, [1, 0]),
        hash_rows(dataset, [0]),
        hash_rows(dataset, []),
        hash_rows(make_dataset([1, 1], list("ab"), ["w", "x"]), [0, 1]),
        hash_rows(make_dataset([0, 1], list("ab"), ["w", "X"]), [0, 1]),
    ]
    assert len({hash_rows(dataset, [0, 1]), *others}) == 6
    assert len(hash_rows(make_dataset([0, 1], list("ab"), ["lone \ud800 surrogate", "x"]), [0, 1])) == 64


def test_the_hash_of_a_part_tells_numeric_features_apart_and_is_that_of_texts_and_labels_where_there_are_none() -> None:
    dataset = make_dataset([0, 1], list("ab"), ["w", "x"])
    first, second = (
        dataclasses.replace(dataset, feature_names=["number"], features=[[1.0], [number]]) for number in (2.0, 3.0)
    )
    assert len({hash_rows(given, [0, 1]) for given in (dataset, first, second)}) == 3
    assert hash_rows(first, [0]) == hash_rows(second, [0])
    assert hash_rows(dataset, [0, 1]) == hashlib.sha256(b"class 0\0w\0class 1\0x\0").hexdigest()
