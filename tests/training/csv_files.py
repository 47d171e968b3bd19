"""CSV files for the tests of data sets, and how those tests read them."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from training.datasets import Dataset, read_dataset

needs_real_data = pytest.mark.skipif("BERT_TEST_DATA" not in os.environ, reason="BERT_TEST_DATA names no folder of data sets")


def write_csv(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write `rows`, gzip-compressed where the name ends in .gz."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def read(path: Path | None, **options: Any) -> Dataset:
    """`read_dataset` of a CSV with the columns `review` and `stars`, or of the data set `name`."""
    given: dict[str, Any] = {"text": "review", "label": "stars", "drop_empty": False, "seed": 0} | options
    return read_dataset(given.pop("name", "csv"), data=path, **given)


def real_file(name: str) -> Path:
    """The CSV of a folder of real data."""
    return Path(os.environ["BERT_TEST_DATA"]) / name / "train.csv.gz"
