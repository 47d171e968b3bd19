"""What chooses the weights that are kept: the validation part alone, never the test part, and never the last epoch as such."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import training.assemble
from contract.files import read_json
from tests.training.tiny_runs import options, result_of
from training.datasets import Dataset
from training.finetune import finetune
from training.split import Split, split_dataset

CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup_share": 0.0, "learning_rate": 3e-3}


def after_the_split(monkeypatch: pytest.MonkeyPatch, change: Callable[[Dataset, Split], None]) -> None:
    """Let `change` put other labels into a part: which rows it has must not depend on them."""

    def split_and_change(dataset: Dataset, **given: Any) -> Split:
        split = split_dataset(dataset, **given)
        change(dataset, split)
        return split

    monkeypatch.setattr(training.assemble, "split_dataset", split_and_change)


def permute_test(dataset: Dataset, split: Split) -> None:
    labels = [dataset.labels[row] for row in split.test]
    random.Random(1).shuffle(labels)
    for row, label in zip(split.test, labels, strict=True):
        dataset.labels[row] = label


def reverse_train(dataset: Dataset, split: Split) -> None:
    """Every epoch learns the contrary, so that the first does the least harm."""
    for row in split.train:
        dataset.labels[row] = 1 - dataset.labels[row]


def test_permuted_labels_of_the_test_part_change_neither_the_weights_nor_the_epoch_that_is_kept(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(options(tmp_path / "true", tiny_csv, tiny_base))
    after_the_split(monkeypatch, permute_test)
    finetune(options(tmp_path / "permuted", tiny_csv, tiny_base))
    true, permuted = result_of(tmp_path / "true"), result_of(tmp_path / "permuted")
    assert permuted["weights"] == true["weights"]
    assert permuted["epochs"] == true["epochs"]
    assert permuted["test"]["accuracy"] < true["test"]["accuracy"], "the test part was to be spoilt"


def test_the_figures_that_are_reported_are_those_of_the_best_epoch_and_not_of_the_last(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_the_split(monkeypatch, reverse_train)
    for name, epochs in (("one", 1), ("four", 4)):
        finetune(options(tmp_path / name, tiny_csv, tiny_base, **CONSTANT, epochs=epochs))
    one, four = result_of(tmp_path / "one"), result_of(tmp_path / "four")
    assert [epoch["best"] for epoch in four["epochs"]] == [True, False, False, False]
    losses = [epoch["validation"]["loss"] for epoch in read_json(tmp_path / "four" / "run.json")["epochs"]]
    assert losses == sorted(losses)
    assert losses[-1] > 1.5 * losses[0], "the last epoch was to be far from the first"
    for part in ("weights", "test", "predictions"):
        assert four[part] == one[part]
