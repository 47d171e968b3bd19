"""Kaggle's "predict closed questions on Stack Overflow": texts, statuses and five numbers about a question.

The numbers are those of the published BERT with tabular features (alexriggio/BERT-LoRA-TensorRT): days from the owner's
registration to the question, tags, reputation, and the words of title and body, counted between single blanks as there.
`PostClosedDate` is never read: it gives the label away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas

from contract.command import UsageError
from training.readers import Table, columns_of, read_csv

STATUSES = ["open", "not a real question", "off topic", "not constructive", "too localized"]
TEXT_COLUMNS = ["Title", "BodyMarkdown", "OpenStatus"]
TAGS = ["Tag1", "Tag2", "Tag3", "Tag4", "Tag5"]
TABULAR_COLUMNS = ["PostCreationDate", "OwnerCreationDate", "ReputationAtPostCreation", *TAGS]
FEATURES = ["account_age_days", "tags", "reputation", "title_words", "body_words"]


def read_stackoverflow(path: Path, *, binary: bool, tabular: bool) -> Table:
    """Title and body with open or closed (`binary`) or one of the five statuses, and the five features if `tabular`.

    Raises:
        UsageError: a missing column, an unknown status, or a date or number that cannot be read.
    """
    if tabular:
        missing = [column for column in TABULAR_COLUMNS if column not in columns_of(path)]
        if missing:
            raise UsageError(f"--tabular needs the column(s) {', '.join(missing)}, which {path} has not; leave --tabular out")
    frame = read_csv(path, TEXT_COLUMNS + (TABULAR_COLUMNS if tabular else []))
    unknown = sorted(set(frame["OpenStatus"]) - set(STATUSES))
    if unknown:
        raise UsageError(f"{path}: OpenStatus holds {unknown}; known are {', '.join(STATUSES)}")
    return Table(
        (frame["Title"] + " " + frame["BodyMarkdown"]).tolist(),
        [status if status == "open" or not binary else "closed" for status in frame["OpenStatus"]],
        order=["open", "closed"] if binary else list(STATUSES),
        feature_names=list(FEATURES) if tabular else [],
        features=_features(path, frame) if tabular else [],
    )


def _features(path: Path, frame: pandas.DataFrame) -> list[list[float]]:
    age = _dates(path, frame["PostCreationDate"]) - _dates(path, frame["OwnerCreationDate"])
    columns = [
        age.dt.days.tolist(),
        (frame[TAGS] != "").sum(axis=1).tolist(),
        _numbers(path, "ReputationAtPostCreation", frame["ReputationAtPostCreation"].tolist()),
        *([len(text.split(" ")) for text in frame[name]] for name in ("Title", "BodyMarkdown")),
    ]
    return [list(map(float, row)) for row in zip(*columns, strict=True)]


def _dates(path: Path, column: pandas.Series[str]) -> pandas.Series[pandas.Timestamp]:
    """As the file writes them, 04/28/2010 15:25:08, or a bare 2010-04-28, of which the file has one."""
    dates = pandas.to_datetime(column, format="%m/%d/%Y %H:%M:%S", errors="coerce")
    dates = dates.fillna(pandas.to_datetime(column, format="%Y-%m-%d", errors="coerce"))
    for row, broken in enumerate(dates.isna()):
        if broken:
            raise UsageError(
                f"{path} data row {row + 1}: {column.name} is {column.iloc[row]!r}; "
                "a date is written MM/DD/YYYY HH:MM:SS or YYYY-MM-DD"
            )
    return dates


def _numbers(path: Path, name: str, cells: Sequence[str]) -> list[float]:
    numbers = []
    for row, cell in enumerate(cells, 1):
        try:
            numbers.append(float(cell))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise UsageError(f"{path} data row {row}: {name} is {cell!r}; it must be a number")
    return numbers
