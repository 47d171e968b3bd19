"""`training.recheck` against figures worked out by hand, with every one of them falsified in turn."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure, UsageError
from contract.files import read_json, read_json_lines, write_json, write_json_lines
from training.metrics import compute_metrics
from training.recheck import recheck

LABELS = ["cat", "dog", "owl"]
# Of 4 cats 3 are found and the fourth is called a dog, both dogs are found, and no owl occurs or is claimed. The logits
# are ln(odds): softmax gives the predicted class 6/8 and the others 1/8 each.
PAIRS = [("cat", "cat"), ("cat", "cat"), ("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("dog", "dog")]
BY_HAND = {
    "samples": 6,
    "loss": (5 * math.log(8 / 6) + math.log(8)) / 6,
    "accuracy": 5 / 6,
    "precision": (1 + 2 / 3 + 0) / 3,
    "recall": (3 / 4 + 1 + 0) / 3,
    "f1": (6 / 7 + 4 / 5 + 0) / 3,
    "weighted_precision": (4 * 1 + 2 * 2 / 3) / 6,
    "weighted_recall": (4 * 3 / 4 + 2 * 1) / 6,
    "weighted_f1": (4 * 6 / 7 + 2 * 4 / 5) / 6,
}


def rows_of(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"label": true, "predicted": said, "logits": [math.log(6) if label == said else 0.0 for label in LABELS]}
        for true, said in pairs
    ]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The two files that are read."""
    write_json(tmp_path / "run.json", {"data": {"labels": LABELS}, "test": BY_HAND})
    write_json_lines(tmp_path / "predictions.jsonl", rows_of(PAIRS))
    return tmp_path


def falsify(folder: Path, **metrics: float) -> None:
    run = read_json(folder / "run.json")
    write_json(folder / "run.json", run | {"test": run["test"] | metrics})


def test_figures_worked_out_by_hand_agree(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recheck(checkpoint)
    assert "9 test metrics, computed again by scikit-learn from 6 predictions, agree" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(BY_HAND))
def test_each_metric_is_missed_when_it_is_false(checkpoint: Path, name: str) -> None:
    wrong = BY_HAND[name] + (2e-4 if name == "loss" else 2e-6)
    falsify(checkpoint, **{name: wrong})
    with pytest.raises(Failure) as caught:
        recheck(checkpoint)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 1
    assert lines[0].strip().startswith(f"{name}: run.json says {wrong!r}, predictions.jsonl gives ")
    assert float(lines[0].rsplit(" ", 1)[1]) == pytest.approx(BY_HAND[name])


def test_every_false_metric_is_named_and_a_tiny_difference_is_none(checkpoint: Path) -> None:
    falsify(checkpoint, accuracy=BY_HAND["accuracy"] + 5e-7, loss=BY_HAND["loss"] - 5e-5)
    recheck(checkpoint)
    falsify(checkpoint, accuracy=0.9, weighted_f1=0.0)
    with pytest.raises(Failure, match=r"(?s)accuracy: run.json says 0.9.*weighted_f1: run.json says 0.0"):
        recheck(checkpoint)


@pytest.mark.parametrize("change", ["drop", "add", "relabel", "reverse"])
def test_changed_predictions_are_found(checkpoint: Path, change: str) -> None:
    pairs = {
        "drop": PAIRS[:-1],
        "add": [*PAIRS, PAIRS[0]],
        "relabel": [("owl", "cat"), *PAIRS[1:]],
        "reverse": [(said, true) for true, said in PAIRS[3:4]] + PAIRS[:3] + PAIRS[4:],
    }
    write_json_lines(checkpoint / "predictions.jsonl", rows_of(pairs[change]))
    with pytest.raises(Failure, match="does not agree with"):
        recheck(checkpoint)


def test_a_predicted_class_that_is_not_of_the_largest_logit_is_found(checkpoint: Path) -> None:
    rows = rows_of(PAIRS)
    rows[2]["predicted"], rows[3]["predicted"] = "dog", "cat"  # the metrics stay as they were
    write_json_lines(checkpoint / "predictions.jsonl", rows)
    with pytest.raises(Failure, match="line 3: predicted is 'dog', which has not the largest logit"):
        recheck(checkpoint)


def test_a_certain_and_wrong_prediction_has_its_true_loss(checkpoint: Path) -> None:
    """1,000, which a loss out of rounded or clipped probabilities would not reach."""
    write_json_lines(checkpoint / "predictions.jsonl", [{"label": "cat", "predicted": "dog", "logits": [0.0, 1000.0, 0.0]}])
    falsify(checkpoint, **(dict.fromkeys(BY_HAND, 0.0) | {"samples": 1, "loss": 1000.0}))
    recheck(checkpoint)


@pytest.mark.parametrize("seed", range(5))
def test_the_trainers_metrics_agree(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    true = generator.choices(LABELS, k=50)
    rows: list[dict[str, Any]] = [
        {"label": label, "logits": [generator.gauss(label == name, 1) for name in LABELS]} for label in true
    ]
    for row in rows:
        row["predicted"] = LABELS[row["logits"].index(max(row["logits"]))]
    loss = sum(math.log(sum(map(math.exp, row["logits"]))) - row["logits"][LABELS.index(row["label"])] for row in rows) / 50
    numbers = ([LABELS.index(row[key]) for row in rows] for key in ("label", "predicted"))
    metrics = compute_metrics(*numbers, num_classes=3, loss=loss)
    write_json(tmp_path / "run.json", {"data": {"labels": LABELS}, "test": vars(metrics)})
    write_json_lines(tmp_path / "predictions.jsonl", rows)
    recheck(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"label": "fox", "predicted": "cat", "logits": [1, 0, 0]}, r"line 1 is no prediction of .*KeyError\('fox'\)"),
        ({"label": "cat", "logits": [1, 0, 0]}, r"line 1 is no prediction of .*KeyError\('predicted'\)"),
        ({"label": "cat", "predicted": "cat", "logits": [1, 0]}, "line 1 has 2 logits for 3 classes"),
        ({"label": "cat", "predicted": "cat", "logits": ["a", 0, 0]}, "line 1 is no prediction"),
        (["cat"], "line 1 is no prediction"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(checkpoint: Path, line: Any, said: str) -> None:
    write_json_lines(checkpoint / "predictions.jsonl", [line])
    with pytest.raises(UsageError, match=said):
        recheck(checkpoint)


def test_no_predictions_at_all_are_refused(checkpoint: Path) -> None:
    write_json_lines(checkpoint / "predictions.jsonl", [])
    with pytest.raises(UsageError, match=r"predictions\.jsonl holds no predictions"):
        recheck(checkpoint)


def test_a_missing_file_or_metric_is_named(checkpoint: Path) -> None:
    run = read_json(checkpoint / "run.json")
    del run["test"]["weighted_f1"]
    write_json(checkpoint / "run.json", run)
    with pytest.raises(UsageError, match=r"run\.json has no test metric weighted_f1; train again"):
        recheck(checkpoint)
    write_json(checkpoint / "run.json", {"data": {"labels": LABELS}})
    with pytest.raises(UsageError, match=r"run\.json is not that of a training run \(KeyError\('test'\)\)"):
        recheck(checkpoint)
    (checkpoint / "run.json").write_text(json.dumps({"data": {"labels": LABELS}, "test": BY_HAND}))
    (checkpoint / "predictions.jsonl").unlink()
    with pytest.raises(UsageError, match=r"cannot read .*predictions\.jsonl"):
        recheck(checkpoint)


def test_a_real_checkpoint_agrees_with_itself_until_a_prediction_is_changed(finetuned: Path, tmp_path: Path) -> None:
    for name in ("run.json", "predictions.jsonl"):
        shutil.copy(finetuned / name, tmp_path)
    recheck(tmp_path)
    rows = list(read_json_lines(tmp_path / "predictions.jsonl"))
    rows[0]["label"] = next(row["label"] for row in rows if row["label"] != rows[0]["label"])
    write_json_lines(tmp_path / "predictions.jsonl", rows)
    with pytest.raises(Failure, match=r"accuracy: run\.json says"):
        recheck(tmp_path)


def test_the_command_ends_with_0_or_1(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "training.recheck", str(checkpoint)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    falsify(checkpoint, accuracy=0.9)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "accuracy: run.json says 0.9, predictions.jsonl gives 0.8333" in done.stderr
