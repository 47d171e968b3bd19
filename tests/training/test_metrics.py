"""`training.metrics` against counting by hand and against scikit-learn."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from training.metrics import Metrics, compute_metrics

SHARES = ("accuracy", "precision", "recall", "f1", "weighted_precision", "weighted_recall", "weighted_f1")


def by_counting(true: list[int], predicted: list[int], num_classes: int) -> tuple[float, float, float, float]:
    """Accuracy and macro precision, recall, F1, straight from their definitions."""
    pairs = list(zip(true, predicted, strict=True))
    precisions, recalls, scores = [], [], []
    for label in range(num_classes):
        hits = sum(t == p == label for t, p in pairs)
        claimed, real = predicted.count(label), true.count(label)
        precisions.append(hits / claimed if claimed else 0.0)
        recalls.append(hits / real if real else 0.0)
        scores.append(2 * hits / (claimed + real) if claimed + real else 0.0)
    return sum(t == p for t, p in pairs) / len(pairs), fmean(precisions), fmean(recalls), fmean(scores)


@pytest.mark.parametrize("seed", range(8))
def test_metrics_equal_those_counted_one_by_one(seed: int) -> None:
    generator = random.Random(seed)
    num_classes, rows = generator.randint(2, 7), generator.randint(1, 60)
    true, predicted = (generator.choices(range(num_classes), k=rows) for _ in range(2))
    metrics = compute_metrics(true, predicted, num_classes=num_classes, loss=0.5)
    found = (metrics.accuracy, metrics.precision, metrics.recall, metrics.f1)
    assert found == pytest.approx(by_counting(true, predicted, num_classes), abs=1e-12)
    assert (metrics.samples, metrics.loss) == (rows, 0.5)


@pytest.mark.parametrize("seed", range(8))
def test_metrics_equal_those_of_scikit_learn(seed: int) -> None:
    """Few rows for many classes, so that some classes never occur and some are never predicted."""
    generator = random.Random(seed)
    num_classes, rows = generator.randint(2, 9), generator.randint(1, 40)
    true, predicted = (generator.choices(range(num_classes), k=rows) for _ in range(2))
    metrics = compute_metrics(true, predicted, num_classes=num_classes, loss=0.0)
    expected = [accuracy_score(true, predicted)]
    for average in ("macro", "weighted"):
        expected += precision_recall_fscore_support(
            true, predicted, labels=range(num_classes), average=average, zero_division=0.0
        )[:3]
    assert [getattr(metrics, name) for name in SHARES] == pytest.approx(expected, abs=1e-12)


def test_weighted_averages_count_each_class_by_its_size() -> None:
    """Class 0, three of four: precision 3/4, recall 1; class 1 is never predicted."""
    metrics = compute_metrics([0, 0, 0, 1], [0, 0, 0, 0], num_classes=2, loss=0.0)
    assert metrics.weighted_precision == pytest.approx(3 / 4 * 3 / 4)
    assert metrics.weighted_recall == pytest.approx(3 / 4)
    assert metrics.weighted_f1 == pytest.approx(6 / 7 * 3 / 4)


def test_two_classes_by_hand() -> None:
    """Class 0: precision 3/4, recall 3/5; class 1: precision 2/4, recall 2/3."""
    metrics = compute_metrics([0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0], num_classes=2, loss=0.0)
    assert metrics.accuracy == pytest.approx(5 / 8)
    assert metrics.precision == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert metrics.recall == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert metrics.f1 == pytest.approx((2 / 3 + 4 / 7) / 2)


def test_a_class_that_is_never_predicted_has_precision_and_f1_0() -> None:
    metrics = compute_metrics([0, 0, 1], [0, 0, 0], num_classes=2, loss=0.0)
    assert (metrics.accuracy, metrics.precision, metrics.recall) == pytest.approx((2 / 3, 1 / 3, 1 / 2))
    assert metrics.f1 == pytest.approx(0.8 / 2)


def test_a_class_that_never_occurs_counts_as_0() -> None:
    metrics = compute_metrics([0, 0, 1, 1], [0, 0, 1, 1], num_classes=3, loss=0.0)
    assert (metrics.accuracy, metrics.precision, metrics.recall, metrics.f1) == pytest.approx((1.0, 2 / 3, 2 / 3, 2 / 3))


def test_all_right_is_1_and_all_wrong_is_0_without_a_division_by_zero() -> None:
    right = compute_metrics([0, 1, 2], [0, 1, 2], num_classes=3, loss=0.1)
    assert right == Metrics(loss=0.1, samples=3, **dict.fromkeys(SHARES, 1.0))
    wrong = compute_metrics([0, 1, 2], [1, 2, 0], num_classes=3, loss=9.0)
    assert wrong == Metrics(loss=9.0, samples=3, **dict.fromkeys(SHARES, 0.0))


@pytest.mark.parametrize(("true", "predicted"), [([], []), ([0], []), ([0, 1], [0])])
def test_nothing_to_count_is_refused(true: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match=f"{len(true)} true and {len(predicted)} predicted classes"):
        compute_metrics(true, predicted, num_classes=2, loss=0.0)


def test_a_class_beyond_the_last_is_refused() -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        compute_metrics([0, 2], [0, 1], num_classes=2, loss=0.0)


def test_metrics_read_as_one_line() -> None:
    weighted = dict.fromkeys(SHARES[4:], 0.75)
    metrics = Metrics(loss=0.25, accuracy=0.875, precision=0.5, recall=0.25, f1=1 / 3, samples=8, **weighted)
    assert str(metrics) == "loss 0.2500  accuracy 87.50%  precision 50.00%  recall 25.00%  F1 33.33%  (8 texts)"
