"""Labelled texts from a file or from this machine, checked before anything is trained on them.

    docstrings      the docstrings of the installed libraries (needs no file)
    stackoverflow   Kaggle's "predict closed questions on Stack Overflow": open 0, closed 1 (`training.stackoverflow`)
    stackoverflow5  the same with its five statuses
    imdb            film reviews, a CSV or the folder aclImdb (`training.reviews`)
    yelp            reviews with stars, folded to negative and positive (`training.reviews`)
    complaints      consumer complaints by product, cleaned (`training.complaints`)
    csv             any CSV with a text column and a label column

CSV files may be gzip-compressed (`.gz`); only the columns that are needed are kept. Splitting is `training.split`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from contract.command import UsageError
from training.complaints import Cleaning, read_complaints
from training.docstrings import read_docstrings
from training.readers import Table, read_columns, read_csv
from training.reviews import read_imdb, read_yelp
from training.stackoverflow import read_stackoverflow

__all__ = ["Cleaning", "Dataset", "DatasetName", "read_csv", "read_dataset"]

DatasetName = Literal["docstrings", "stackoverflow", "stackoverflow5", "imdb", "yelp", "complaints", "csv"]

DOCSTRINGS_PER_LIBRARY = 1300  # the smallest library, numpy, has about that many of 20 words or more


@dataclass(frozen=True)
class Dataset:
    """Texts with labels. Row i is `texts[i]`, class `names[labels[i]]`, group `groups[i]`."""

    name: str
    texts: list[str]
    labels: list[int]
    names: list[str]
    """Class names, in the order of the logits."""
    groups: list[str]
    """Rows of one group must stay in one part of a split: the same text (see `group_of`), or one module's docstrings."""
    feature_names: list[str] = field(default_factory=list)
    """Names of the numeric features; empty where there are none."""
    features: list[list[float]] = field(default_factory=list)
    """One row a text, as wide as `feature_names`, raw values; empty where there are none."""


def group_of(text: str) -> str:
    """What counts as the same text: neither case nor white space makes another one."""
    return " ".join(text.split()).casefold()


def read_dataset(
    name: DatasetName,
    *,
    data: Path | None,
    text: str | None,
    label: str | None,
    drop_empty: bool,
    seed: int,
    tabular: bool = False,
    cleaning: Cleaning | None = None,
) -> Dataset:
    """Read and check a data set.

    Args:
        tabular: also read the numeric features, which stackoverflow and stackoverflow5 have.
        cleaning: of complaints; its defaults when left out.

    Raises:
        UsageError: a missing file, column or class, an empty text, a broken file; the message says which and where.
    """
    if tabular and name not in {"stackoverflow", "stackoverflow5"}:
        raise UsageError(f"--tabular needs --dataset stackoverflow or stackoverflow5; {name} has no numeric features")
    if name == "docstrings":
        table, groups = _read_documented(seed)
        return _checked(name, table, groups, drop_empty=drop_empty)
    if data is None:
        raise UsageError(f"--dataset {name} needs --data FILE")
    if name == "csv":
        table, title = _read_any(data, text, label), data.name.split(".")[0]
    else:
        table, title = _read_published(name, data, tabular=tabular, cleaning=cleaning or Cleaning(), seed=seed), name
    return _checked(title, table, [group_of(row) for row in table.texts], drop_empty=drop_empty)


def _read_documented(seed: int) -> tuple[Table, list[str]]:
    """Docstrings and their modules. A text that another module has too, but for case or white space, is left out."""
    texts, labels, groups = read_docstrings(cap=DOCSTRINGS_PER_LIBRARY, seed=seed)
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(group_of(text), row)
    rows = list(first.values())
    return Table([texts[row] for row in rows], [labels[row] for row in rows]), [groups[row] for row in rows]


def _read_published(name: DatasetName, data: Path, *, tabular: bool, cleaning: Cleaning, seed: int) -> Table:
    match name:
        case "imdb":
            return read_imdb(data)
        case "yelp":
            return read_yelp(data)
        case "complaints":
            return read_complaints(data, cleaning, seed=seed)
        case _:
            return read_stackoverflow(data, binary=name == "stackoverflow", tabular=tabular)


def _read_any(data: Path, text: str | None, label: str | None) -> Table:
    if text is None or label is None:
        raise UsageError("--dataset csv needs --text COLUMN and --label COLUMN")
    rows = list(read_columns(data, [text, label]))
    return Table([row[0] for row in rows], [row[1] for row in rows])


def _checked(name: str, table: Table, groups: Sequence[str], *, drop_empty: bool) -> Dataset:
    pairs = list(zip(table.texts, table.labels, strict=True))
    empty = [row for row, (text, label) in enumerate(pairs) if not text.strip() or not label.strip()]
    if empty and not drop_empty:
        rows = ", ".join(str(table.rows[row] if table.rows else row + 1) for row in empty[:5]) + (
            ", ..." if len(empty) > 5 else ""
        )
        raise UsageError(
            f"{len(empty)} of {len(pairs)} rows have an empty text or label (data rows {rows}); mend them or pass --drop-empty"
        )
    dropped = set(empty)
    kept = [row for row in range(len(pairs)) if row not in dropped]
    names = _class_names(name, [pairs[row][1] for row in kept], table.order)
    index = {label: number for number, label in enumerate(names)}
    return Dataset(
        name,
        [pairs[row][0] for row in kept],
        [index[pairs[row][1]] for row in kept],
        names,
        [groups[row] for row in kept],
        table.feature_names,
        [table.features[row] for row in kept] if table.features else [],
    )


def _class_names(name: str, labels: list[str], order: list[str] | None) -> list[str]:
    counts = Counter(labels)
    if len(counts) < 2:
        raise UsageError(f"{name} has {len(counts)} class ({', '.join(counts) or 'no rows'}); a classifier needs at least 2")
    broken = [label for label in counts if label.splitlines() != [label]]
    if broken:
        raise UsageError(f"the label {broken[0]!r} is more than one line; Triton reads its labels a line each: rename it")
    return order or sorted(counts)
