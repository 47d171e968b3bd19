"""Labelled texts from a file or from this machine, checked before anything is trained on them.

    docstrings      the docstrings of the installed libraries (needs no file)
    stackoverflow   Kaggle's "predict closed questions on Stack Overflow": open 0, closed 1
    csv             any CSV with a text column and a label column

CSV files may be gzip-compressed (`.gz`); only the columns that are needed are read. Splitting is `training.split`.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas

from contract.command import UsageError
from training.docstrings import read_docstrings

DatasetName = Literal["docstrings", "stackoverflow", "csv"]

DOCSTRINGS_PER_LIBRARY = 1300  # the smallest library, numpy, has about that many of 20 words or more
STACKOVERFLOW_CLOSED = frozenset({"not a real question", "off topic", "not constructive", "too localized"})
STACKOVERFLOW_COLUMNS = ("Title", "BodyMarkdown", "OpenStatus")  # never PostClosedDate: it gives the label away


@dataclass(frozen=True)
class Dataset:
    """Texts with labels. Row i is `texts[i]`, class `names[labels[i]]`, group `groups[i]`."""

    name: str
    texts: list[str]
    labels: list[int]
    names: list[str]
    """Class names, in the order of the logits."""
    groups: list[str]
    """Rows of one group must stay in one part of a split: the text itself, or the module of a docstring."""


def read_dataset(
    name: DatasetName, *, data: Path | None, text: str | None, label: str | None, drop_empty: bool, seed: int
) -> Dataset:
    """Read and check a data set.

    Raises:
        UsageError: a missing file, column or class, an empty text, a broken file; the message says which and where.
    """
    if name == "docstrings":
        texts, labels, groups = read_docstrings(cap=DOCSTRINGS_PER_LIBRARY, seed=seed)
        return _checked(name, texts, labels, groups, drop_empty=drop_empty)
    if data is None:
        raise UsageError(f"--dataset {name} needs --data FILE")
    if name == "stackoverflow":
        texts, labels = _read_stackoverflow(data)
        return _checked(name, texts, labels, texts, drop_empty=drop_empty, order=["open", "closed"])
    if text is None or label is None:
        raise UsageError("--dataset csv needs --text COLUMN and --label COLUMN")
    frame = read_csv(data, [text, label])
    texts, labels = frame[text].tolist(), frame[label].tolist()
    return _checked(data.name.split(".")[0], texts, labels, texts, drop_empty=drop_empty)


def _read_stackoverflow(path: Path) -> tuple[list[str], list[str]]:
    frame = read_csv(path, list(STACKOVERFLOW_COLUMNS))
    unknown = sorted(set(frame["OpenStatus"]) - STACKOVERFLOW_CLOSED - {"open"})
    if unknown:
        raise UsageError(f"{path}: OpenStatus holds {unknown}; known are open and {sorted(STACKOVERFLOW_CLOSED)}")
    texts = (frame["Title"] + " " + frame["BodyMarkdown"]).tolist()
    return texts, ["open" if status == "open" else "closed" for status in frame["OpenStatus"]]


def read_csv(path: Path, columns: list[str]) -> pandas.DataFrame:
    """The named columns of a CSV as text, empty cells as "". Raises UsageError (see `read_dataset`)."""
    header = _read_csv(path, nrows=0)
    missing = [column for column in columns if column not in header.columns]
    if missing:
        raise UsageError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, header.columns))}")
    if len(set(columns)) < len(columns):
        raise UsageError(f"text and label are the same column, {columns[0]!r}")
    return _read_csv(path, usecols=columns)[columns]


def _read_csv(path: Path, *, nrows: int | None = None, usecols: list[str] | None = None) -> pandas.DataFrame:
    try:
        return pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", nrows=nrows, usecols=usecols)
    except FileNotFoundError as error:
        raise UsageError(f"the data file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error}); convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is a broken gzip file ({error}); fetch it again") from error
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise UsageError(f"{path} is not a well-formed CSV: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _checked(
    name: str,
    texts: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    drop_empty: bool,
    order: list[str] | None = None,
) -> Dataset:
    empty = [row for row, (text, label) in enumerate(zip(texts, labels, strict=True)) if not text.strip() or not label.strip()]
    if empty and not drop_empty:
        rows = ", ".join(str(row + 1) for row in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise UsageError(
            f"{len(empty)} of {len(texts)} rows have an empty text or label (data rows {rows}); mend them or pass --drop-empty"
        )
    dropped = set(empty)
    kept = [row for row in range(len(texts)) if row not in dropped]
    counts = Counter(labels[row] for row in kept)
    if len(counts) < 2:
        raise UsageError(f"{name} has {len(counts)} class ({', '.join(counts) or 'no rows'}); a classifier needs at least 2")
    broken = [label for label in counts if label.splitlines() != [label]]
    if broken:
        raise UsageError(f"the label {broken[0]!r} is more than one line; Triton reads its labels a line each: rename it")
    names = order or sorted(counts)
    index = {label: number for number, label in enumerate(names)}
    return Dataset(
        name, [texts[row] for row in kept], [index[labels[row]] for row in kept], names, [groups[row] for row in kept]
    )
