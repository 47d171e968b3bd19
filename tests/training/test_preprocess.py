"""`training.preprocess`: the files that it writes, and that they share no text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest

from contract.command import UsageError
from tests.training.csv_files import read, write_csv
from training.complaints import NARRATIVE, PRODUCT
from training.preprocess import Preprocess, preprocess

COUNTS = {"Mortgage": 60, "Debt collection": 40, "Credit card": 20}
SMALL: dict[str, Any] = {"sample_frac": 1.0, "class_threshold": 20}


@pytest.fixture
def complaints(tmp_path: Path) -> Path:
    """Every fourth text repeats the one before it in capitals."""
    rows = []
    for product, count in COUNTS.items():
        for number in range(count):
            text = f"my {product} complaint of the day has the number {number - (number % 4 == 3)} here"
            rows.append((product, text.upper() if number % 4 == 3 else text))
    return write_csv(tmp_path / "complaints.csv", [(PRODUCT, NARRATIVE), *rows])


def run(complaints: Path, name: str = "out", **options: Any) -> tuple[pandas.DataFrame, pandas.DataFrame, dict[str, int]]:
    """(train.csv, test.csv, label_map.json)."""
    output = complaints.with_name(name)
    preprocess(Preprocess(data=complaints, output=output, **(SMALL | options)))
    train, test = (pandas.read_csv(output / f"{part}.csv") for part in ("train", "test"))
    return train, test, json.loads((output / "label_map.json").read_text())


def test_the_parts_hold_every_complaint_once_stratified(complaints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test, label_map = run(complaints)
    assert label_map == {"Credit card or prepaid card": 0, "Debt collection": 1, "Mortgage": 2}
    assert list(train.columns) == list(test.columns) == ["Product", "Product_encoded", "Processed_complaint"]
    counts = {"Mortgage": 12, "Debt collection": 8, "Credit card or prepaid card": 4}
    assert all(abs(counts[name] - number) <= 1 for name, number in Counter(test["Product"]).items())
    assert len(train) + len(test) == 120
    for frame in (train, test):
        assert [label_map[name] for name in frame["Product"]] == frame["Product_encoded"].tolist()
    assert "2 Mortgage: 48 to train on, 12 to test on" in capsys.readouterr().out


def test_no_text_is_in_both_parts_whatever_its_case(complaints: Path) -> None:
    for seed in range(5):
        train, test, _ = run(complaints, f"seed{seed}", random_state=seed)
        assert not set(train["Processed_complaint"].str.lower()) & set(test["Processed_complaint"].str.lower())


def test_the_seed_decides(complaints: Path) -> None:
    first, again, other = (run(complaints, name, random_state=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first[0].equals(again[0]) and first[1].equals(again[1])
    assert not first[1].equals(other[1])
    assert first[0]["Product_encoded"].tolist() != sorted(first[0]["Product_encoded"])


def test_what_it_writes_can_be_trained_on(complaints: Path) -> None:
    train, _, label_map = run(complaints)
    path = complaints.with_name("out") / "train.csv"
    dataset = read(path, text="Processed_complaint", label="Product")
    assert dataset.names == list(label_map)
    assert dataset.texts == train["Processed_complaint"].tolist()


def test_the_defaults_are_the_published_ones() -> None:
    options = Preprocess(data=Path("a"), output=Path("b"))
    found = (options.sample_frac, options.class_threshold, options.min_text_length, options.test_size, options.random_state)
    assert found == (0.1, 1000, 10, 0.2, 42)


@pytest.mark.parametrize("size", [0.0, 1.0, -0.5])
def test_a_test_size_outside_its_range_is_named(complaints: Path, size: float) -> None:
    with pytest.raises(UsageError, match=rf"--test-size is {size}; it must be in \(0, 1\)"):
        run(complaints, test_size=size)


def test_too_few_complaints_leave_no_folder(complaints: Path) -> None:
    with pytest.raises(UsageError, match="--class-threshold is 1000"):
        run(complaints, class_threshold=1000)
    assert [path.name for path in complaints.parent.iterdir()] == ["complaints.csv"]


def test_the_command_takes_the_published_options(complaints: Path) -> None:
    options = ["--sample-frac", "0.9", "--class-threshold", "5", "--min-text-length", "10", "--test-size", "0.25"]
    command = [sys.executable, "-m", "training.preprocess", "--data", str(complaints), *options, "--random-state", "7"]
    command += ["--output", str(complaints.with_name("out"))]
    done, again = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert (done.returncode, done.stderr) == (0, "")
    assert "dropped 12 at random" in done.stdout
    assert again.returncode == 2
    assert "exists already" in again.stderr
