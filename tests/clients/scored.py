"""What the tests of `clients.score` share: files, options, and what the transport in memory answers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from clients.score import Score
from tests.clients.async_memory import AsyncMemoryTransport
from tests.clients.memory import LABELS, logits_of

Serve = Callable[..., AsyncMemoryTransport]


def options_of(folder: Path, source: str = "in.csv", target: str = "out.csv", **options: Any) -> Score:
    return Score(**{"input": folder / source, "output": folder / target, "text_column": "text", "part_rows": 10, **options})


def write_csv(path: Path, rows: list[list[str]], header: tuple[str, ...] = ("id", "text")) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def label_of(text: str) -> str:
    return LABELS[int(np.argmax(logits_of(text.encode())))]


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows
