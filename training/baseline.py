"""The yardstick: TF-IDF of words and a linear classifier, on exactly the split that `training.finetune` would use.

    python -m training.baseline --dataset imdb --data imdb.csv --output build/baseline.json

The validation part chooses the penalty, as it chooses the epoch of a fine-tuning; the test part is evaluated once. The
hashes in the output tell whether a checkpoint's run.json is of the same parts.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.svm import LinearSVC
from tqdm import tqdm

from contract.command import UsageError, run_command
from contract.files import write_json
from training.datasets import Cleaning, Dataset, DatasetName, read_dataset
from training.split import Split, check_shares, hash_rows, split_dataset

PENALTIES = (0.1, 0.3, 1.0, 3.0)  # C of the support vector machine, larger for less regularisation


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Fit TF-IDF and a linear classifier, and write its quality on the test part."""

    output: Path
    """JSON file to write."""
    dataset: DatasetName = "docstrings"
    """As in training.finetune, like the options below."""
    data: Path | None = None
    """CSV file, plain or .gz, or the folder aclImdb; for every data set but docstrings."""
    text: str | None = None
    """Column of the texts, for csv."""
    label: str | None = None
    """Column of the labels, for csv."""
    drop_empty: bool = False
    """Leave out rows with an empty text or label instead of stopping at them."""
    class_threshold: int = 30
    """Complaints that a product must have to be a class, for complaints."""
    sample_frac: float = 1.0
    """Share of the complaints to draw at random, for complaints."""
    min_text_length: int = 10
    """Words that a cleaned complaint must have, for complaints."""
    train_rows: int | None = None
    """Train on at most this many rows, drawn at random."""
    validation_share: float = 0.1
    """Share of the rows that chooses the penalty."""
    test_share: float = 0.2
    """Share of the rows that is evaluated once at the end."""
    seed: int = 0
    """Of the split and of the classifier."""

    def __post_init__(self) -> None:
        check_shares(self.validation_share, self.test_share)
        _ = self.cleaning
        if self.train_rows is not None and self.train_rows < 1:
            raise UsageError(f"--train-rows is {self.train_rows}; it must be at least 1")

    @property
    def cleaning(self) -> Cleaning:
        """How complaints are cleaned."""
        return Cleaning(
            sample_frac=self.sample_frac, class_threshold=self.class_threshold, min_text_length=self.min_text_length
        )


def baseline(options: Baseline) -> None:
    """Run the whole of it, print the result and write it."""
    started = time.perf_counter()
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {options.output.parent}: {error}") from error
    dataset = read_dataset(
        options.dataset,
        data=options.data,
        text=options.text,
        label=options.label,
        drop_empty=options.drop_empty,
        seed=options.seed,
        cleaning=options.cleaning,
    )
    split = split_dataset(
        dataset,
        validation_share=options.validation_share,
        test_share=options.test_share,
        train_rows=options.train_rows,
        seed=options.seed,
    )
    penalty, metrics = fit_and_test(dataset, split, seed=options.seed)
    result = describe(options, dataset, split) | {
        "penalty": penalty,
        "test": metrics,
        "seconds": time.perf_counter() - started,
    }
    write_json(options.output, result)
    print(
        f"{dataset.name}, TF-IDF + linear classifier on {len(split.train):,} texts: accuracy {metrics['accuracy']:.2%}  "
        f"macro F1 {metrics['f1']:.2%}  weighted F1 {metrics['weighted_f1']:.2%}  ({metrics['samples']} test texts)"
    )
    print(f"wrote {options.output}")


def fit_and_test(dataset: Dataset, split: Split, *, seed: int) -> tuple[float, dict[str, Any]]:
    """(the penalty of the best macro F1 on the validation part, its quality on the test part in run.json's names)."""
    labels = {part: [dataset.labels[row] for row in rows] for part, rows in dataclasses.asdict(split).items()}
    if len(set(labels["train"])) < 2:
        raise UsageError(f"the {len(split.train)} training texts are all of one class; raise --train-rows")
    vectoriser = TfidfVectorizer(sublinear_tf=True, min_df=2)
    try:
        train = vectoriser.fit_transform(_texts(dataset, split.train, "counting words"))
    except ValueError as error:
        raise UsageError(
            f"no word occurs in two of the {len(split.train)} training texts; there is nothing to count"
        ) from error
    validation = vectoriser.transform(_texts(dataset, split.validation, "counting words of the validation part"))
    test = vectoriser.transform(_texts(dataset, split.test, "counting words of the test part"))
    fitted = []
    for penalty in tqdm(PENALTIES, desc="fitting", unit="classifiers", mininterval=0.5, delay=1):
        classifier = LinearSVC(C=penalty, random_state=seed, max_iter=10_000).fit(train, labels["train"])
        scores = quality(labels["validation"], classifier.predict(validation).tolist(), num_classes=len(dataset.names))
        fitted.append((scores["f1"], penalty, classifier))
    _, penalty, classifier = max(fitted, key=lambda candidate: candidate[0])
    return penalty, quality(labels["test"], classifier.predict(test).tolist(), num_classes=len(dataset.names))


def quality(true: list[int], predicted: list[int], *, num_classes: int) -> dict[str, Any]:
    """Accuracy, macro and weighted F1. A class that never occurs counts as 0 in the macro average."""
    every = {"labels": range(num_classes), "zero_division": 0.0}
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "f1": float(f1_score(true, predicted, average="macro", **every)),
        "weighted_f1": float(f1_score(true, predicted, average="weighted", **every)),
        "samples": len(true),
    }


def describe(options: Baseline, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Where the figures come from, in the words of run.json."""
    configuration = dataclasses.asdict(options)
    return {
        "configuration": {key: str(value) if isinstance(value, Path) else value for key, value in configuration.items()},
        "data": {
            "name": dataset.name,
            "labels": dataset.names,
            "parts": {
                part: {"rows": len(rows), "sha256": hash_rows(dataset, rows)}
                for part, rows in dataclasses.asdict(split).items()
            },
        },
        "versions": {name: version(name) for name in ("scikit-learn", "scipy", "numpy")},
    }


def _texts(dataset: Dataset, rows: list[int], what: str) -> tqdm[str]:
    return tqdm([dataset.texts[row] for row in rows], desc=what, unit="texts", mininterval=0.5, delay=1)


if __name__ == "__main__":
    run_command(lambda: baseline(tyro.cli(Baseline, prog="python -m training.baseline", description=__doc__)))
