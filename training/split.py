"""Parts of a data set (training, validation, test): stratified, seeded, and disjoint by group."""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from contract.command import UsageError
from training.datasets import Dataset

T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """Row numbers of each part."""

    train: list[int]
    validation: list[int]
    test: list[int]


def check_shares(validation_share: float, test_share: float) -> None:
    """Raises UsageError unless both leave something for the training part."""
    if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
        raise UsageError(f"--validation-share {validation_share} and --test-share {test_share} must be above 0 and sum below 1")


def split_dataset(dataset: Dataset, *, validation_share: float, test_share: float, train_rows: int | None, seed: int) -> Split:
    """Deal whole groups out to test, validation and training, class by class.

    Args:
        validation_share: of all rows, in (0, 1); reached to within one group for each class. `test_share` likewise.
        train_rows: cap on the training part, drawn at random after shuffling; None keeps every row.

    Raises:
        UsageError: a class has too few groups for a row in each part.
    """
    train, test, validation = deal_rows(dataset, [test_share, validation_share], seed=seed)
    return Split(train[:train_rows], sorted(validation), sorted(test))


def deal_rows(dataset: Dataset, shares: Sequence[float], *, seed: int) -> list[list[int]]:
    """The rows left over, shuffled, then a part for each of `shares`. Raises UsageError (see `split_dataset`)."""
    generator = random.Random(seed)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for name, groups in zip(dataset.names, _strata(dataset), strict=True):
        if len(groups) < len(parts):
            raise UsageError(
                f"class {name!r} has {len(groups)} distinct text(s); at least {len(parts)} are needed, one for each part"
            )
        generator.shuffle(groups)
        rows = sum(map(len, groups))
        for number, share in enumerate(shares, 1):
            parts[number] += _deal(groups, rows * share, keep=len(parts) - number)
        parts[0] += [row for group in groups for row in group]
    generator.shuffle(parts[0])
    return parts


def _strata(dataset: Dataset) -> list[list[list[int]]]:
    """The groups of each class, each a list of rows; a group under two labels is of the class that comes first."""
    strata: list[dict[str, list[int]]] = [defaultdict(list) for _ in dataset.names]
    first_label: dict[str, int] = {}
    for row, (group, label) in enumerate(zip(dataset.groups, dataset.labels, strict=True)):
        strata[first_label.setdefault(group, label)][group].append(row)
    return [list(stratum.values()) for stratum in strata]


def _deal(groups: list[list[int]], wanted: float, *, keep: int) -> list[int]:
    """Take groups off the end of the list until there are `wanted` rows, at least one group, and `keep` remain."""
    taken: list[int] = []
    while len(groups) > keep and (not taken or len(taken) + len(groups[-1]) / 2 < wanted):
        taken += groups.pop()
    return taken


def spread_rows(rows: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of `rows`, evenly taken: validation and test part are in the order of the data, often class by class."""
    count = min(limit, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def hash_rows(dataset: Dataset, rows: list[int]) -> str:
    """Hex sha256 over texts, labels and numeric features of `rows`, in order: the identity of a part in `run.json`."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{dataset.names[dataset.labels[row]]}\0{dataset.texts[row]}\0".encode("utf-8", "surrogatepass"))
        if dataset.features:
            digest.update(json.dumps(dataset.features[row]).encode() + b"\0")
    return digest.hexdigest()
