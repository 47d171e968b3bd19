"""The texts that are sent: a seeded sample of a file of real ones, with the lengths that they really have."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from contract.command import UsageError
from contract.files import read_json_lines

csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long text


def read_texts(path: Path, *, limit: int | None = None, seed: int = 0, column: str = "text") -> list[str]:
    """Up to `limit` texts of `path`, in an order drawn from `seed`; blank ones are left out.

    A .csv holds them in `column`, a .txt one a line; any other file is JSON lines, each with a `column`.

    Raises:
        UsageError: the file is missing or broken, has no such column, or holds no texts.
    """
    readers = {".csv": _csv_texts, ".txt": _lines}
    texts = [text for text in readers.get(path.suffix, _json_texts)(path, column) if text.strip()]
    if not texts:
        wanted = {".csv": f"its column {column!r} is empty", ".txt": "each line that is not blank is one"}
        lines = f'each line must be a JSON object with a non-empty "{column}"'
        raise UsageError(f"{path} holds no texts; {wanted.get(path.suffix, lines)}")
    random.Random(seed).shuffle(texts)
    return texts[:limit]


def group_texts(texts: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Requests of `size` texts, in order; what is left over is not sent."""
    return [tuple(texts[start : start + size]) for start in range(0, len(texts) - size + 1, size)]


def _json_texts(path: Path, column: str) -> Iterator[str]:
    for row in read_json_lines(path):
        if isinstance(row, dict) and isinstance(row.get(column), str):
            yield row[column]


def _csv_texts(path: Path, column: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if column not in (reader.fieldnames or ()):
                raise UsageError(f"{path} has no column {column!r}; it has {', '.join(map(repr, reader.fieldnames or ()))}")
            for row in reader:
                yield row[column] or ""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path} as CSV: {error}") from error


def _lines(path: Path, column: str) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
