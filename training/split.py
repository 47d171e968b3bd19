"""Training, validation and test part of a data set: stratified, seeded, and disjoint by group."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass

from contract.command import UsageError
from training.datasets import Dataset


@dataclass(frozen=True)
class Split:
    """Row numbers of each part."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_dataset(dataset: Dataset, *, validation_share: float, test_share: float, train_rows: int | None, seed: int) -> Split:
    """Deal whole groups out to test, validation and training, class by class.

    Args:
        validation_share: of all rows, in (0, 1); reached to within one group for each class. `test_share` likewise.
        train_rows: cap on the training part, drawn at random after shuffling; None keeps every row.

    Raises:
        UsageError: a class has too few groups for a row in each part.
    """
    strata: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    first_label: dict[str, int] = {}
    for row, (group, label) in enumerate(zip(dataset.groups, dataset.labels, strict=True)):
        stratum = first_label.setdefault(group, label)  # a text that occurs under two labels still has one place
        strata[stratum][group].append(row)
    generator = random.Random(seed)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for label, name in enumerate(dataset.names):
        groups = list(strata[label].values())
        if len(groups) < 3:
            raise UsageError(
                f"class {name!r} has {len(groups)} distinct text(s); at least 3 are needed, "
                "one each for training, validation and test"
            )
        generator.shuffle(groups)
        rows = sum(map(len, groups))
        test += _deal(groups, rows * test_share, keep=2)
        validation += _deal(groups, rows * validation_share, keep=1)
        train += [row for group in groups for row in group]
    generator.shuffle(train)
    return Split(train[:train_rows], sorted(validation), sorted(test))


def _deal(groups: list[list[int]], wanted: float, *, keep: int) -> list[int]:
    """Take groups off the end of the list until there are `wanted` rows, at least one group, and `keep` remain."""
    taken: list[int] = []
    while len(groups) > keep and (not taken or len(taken) + len(groups[-1]) / 2 < wanted):
        taken += groups.pop()
    return taken


def hash_rows(dataset: Dataset, rows: list[int]) -> str:
    """Hex sha256 over the texts and labels of `rows`, in order: the identity of a part in `run.json`."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{dataset.names[dataset.labels[row]]}\0{dataset.texts[row]}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
