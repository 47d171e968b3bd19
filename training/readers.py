"""Rows out of a CSV file, as text, and every way in which such a file can be broken.

Files may be gzip-compressed (`.gz`). Nothing is guessed: a row with more fields than the header is refused, since an
unquoted comma has shifted its fields. What the columns mean is the business of the data sets' own modules.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas
from tqdm import tqdm

from contract.command import UsageError
from contract.files import read_json_lines

csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long text; it is one setting for the process


@dataclass(frozen=True)
class Table:
    """What a reader hands over. Row i is `texts[i]` with the class name `labels[i]`."""

    texts: list[str]
    labels: list[str]
    order: list[str] | None = None
    """Class names in the order of the logits; None sorts those that occur."""
    feature_names: list[str] = field(default_factory=list)
    features: list[list[float]] = field(default_factory=list)
    """Raw numbers beside each text; empty where there are none."""
    rows: list[int] = field(default_factory=list)
    """Data row of the file, from 1, that each text came from; empty where that is its own number."""


def read_csv(path: Path, columns: list[str]) -> pandas.DataFrame:
    """The named columns of a CSV as text, empty cells as "". Raises UsageError (see `read_columns`)."""
    return pandas.DataFrame(list(read_columns(path, columns)), columns=columns, dtype=str)


def read_columns(path: Path, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """The cells of the named columns, row by row, empty ones as "".

    Raises:
        UsageError: a missing or doubled column, or a file that is missing or broken (see `read_rows`).
    """
    rows = read_rows(path)
    header = next(rows)
    missing = [column for column in columns if column not in header]
    if missing:
        raise UsageError(f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, header))}")
    if len(set(columns)) < len(columns):
        raise UsageError(f"text and label are the same column, {columns[0]!r}")
    doubled = [column for column in columns if header.count(column) > 1]
    if doubled:
        raise UsageError(f"{path} has the column {doubled[0]!r} twice; rename one of them")
    places = [header.index(column) for column in columns]
    for row in tqdm(rows, desc=f"reading {path.name}", unit="rows", mininterval=0.5, delay=1):
        yield tuple(row[place] for place in places)


def columns_of(path: Path) -> list[str]:
    """The fields of the first line. Raises UsageError (see `read_rows`)."""
    return next(read_rows(path))


def read_rows(path: Path) -> Iterator[list[str]]:
    """Rows of as many fields as the first one, which comes first. Short rows are filled with "", blank lines left out.

    Raises:
        UsageError: the file is missing, empty, no UTF-8, a broken gzip or no well-formed CSV; or a row is too long.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            try:
                yield from _parse(path, csv.reader(file, strict=True))
            except (UsageError, UnicodeDecodeError):
                while file.buffer.read(1 << 20):  # a broken gzip file may show only at its end, and is then the better reason
                    pass
                raise
    except FileNotFoundError as error:
        raise UsageError(f"the data file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error}); convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is a broken gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _parse(path: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    width = 0
    number = -1
    try:
        for row in filter(None, reader):
            number += 1
            width = width or len(row)
            if len(row) > width:
                raise UsageError(
                    f"{path} data row {number} has {len(row)} fields, the first line {width}, so its cells are shifted; "
                    'put a text that holds a comma between double quotes ("...")'
                )
            yield row + [""] * (width - len(row))
    except csv.Error as error:
        raise UsageError(f"{path} is not a well-formed CSV: {error} (after data row {max(number, 0)})") from error
    if not width:
        raise UsageError(f"{path} is not a well-formed CSV: it is empty")


def is_unicode(text: str) -> bool:
    """Whether every character is one: an escape, of JSON or of Python, may spell half a surrogate pair, which is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_characters(file: Path, texts: Iterable[str]) -> None:
    """Raise UsageError for a text, one a line of `file`, that holds half a surrogate pair: no tokenizer takes it."""
    for number, text in enumerate(texts, 1):
        if not is_unicode(text):
            raise UsageError(f"{file} line {number}: the text holds half a surrogate pair, which is no character; mend it")


def read_texts(file: Path) -> list[str]:
    """The texts of a .jsonl ("text" of each line), a .csv (its column "text") or any other file (one a line), blanks left out.

    Raises:
        UsageError: a missing file, or one that is not what its name says.
    """
    try:
        if file.suffix == ".jsonl":
            texts = [row["text"] for row in read_json_lines(file)]
        elif file.suffix == ".csv":
            texts = [text for (text,) in read_columns(file, ["text"])]
        else:
            texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the texts of {file}: {error}") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f'{file} must have a "text" in every line') from error
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f'{file}: every "text" must be a string')
    check_characters(file, texts)
    return [text for text in texts if text.strip()]
