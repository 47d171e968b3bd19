"""Reviews by sentiment: IMDB (Large Movie Review Dataset) and Yelp polarity, in the forms in which they are handed round.

imdb   a CSV with the columns review and sentiment, or the folder aclImdb of {train,test}/{pos,neg}/*.txt
yelp   a CSV with the columns stars and text, or one without a header: "1" (negative) or "2" (positive), then the text
"""

from __future__ import annotations

import re
from pathlib import Path

from tqdm import tqdm

from contract.command import UsageError
from training.readers import Table, columns_of, read_columns, read_rows

SENTIMENTS = ["negative", "positive"]
_LINE_BREAK = re.compile(r"<br\s*/?>", re.I)
_POLARITY = {"1": "negative", "2": "positive"}  # of the file without a header
_STARS = {1.0: "negative", 2.0: "negative", 3.0: None, 4.0: "positive", 5.0: "positive"}


def read_imdb(path: Path) -> Table:
    """Film reviews, `<br />` replaced by a blank. Raises UsageError: a missing folder or column, an unknown sentiment."""
    texts, labels = _read_aclimdb(path) if path.is_dir() else _read_imdb_csv(path)
    return Table([_LINE_BREAK.sub(" ", text) for text in texts], labels, order=list(SENTIMENTS))


def _read_imdb_csv(path: Path) -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for row, (text, sentiment) in enumerate(read_columns(path, ["review", "sentiment"]), 1):
        if sentiment not in SENTIMENTS:
            raise UsageError(f"{path} data row {row}: sentiment is {sentiment!r}; known are {' and '.join(SENTIMENTS)}")
        texts.append(text)
        labels.append(sentiment)
    return texts, labels


def _read_aclimdb(folder: Path) -> tuple[list[str], list[str]]:
    """Both parts, where both are there; `unsup`, the reviews without a label, is left out."""
    parts = [part for part in ("train", "test") if (folder / part).is_dir()]
    wanted = [(folder / part / name, label) for part in parts for name, label in (("neg", "negative"), ("pos", "positive"))]
    missing = [str(place) for place, _ in wanted if not place.is_dir()]
    if missing or not parts:
        raise UsageError(f"{folder} is not the folder aclImdb: {', '.join(missing) or 'train and test'} missing")
    files = [(path, label) for place, label in wanted for path in sorted(place.glob("*.txt"))]
    texts = []
    for path, _ in tqdm(files, desc=f"reading {folder.name}", unit="reviews", mininterval=0.5, delay=1):
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error
    return texts, [label for _, label in files]


def read_yelp(path: Path) -> Table:
    """Reviews, 1 and 2 stars negative, 4 and 5 positive, 3 dropped and counted. Raises UsageError: no such column or stars."""
    first = columns_of(path)
    return _read_polarity(path) if len(first) == 2 and first[0] in _POLARITY else _read_stars(path)


def _read_polarity(path: Path) -> Table:
    texts, labels = [], []
    for row, (polarity, text) in enumerate(read_rows(path), 1):
        if polarity not in _POLARITY:
            raise UsageError(f"{path} row {row}: the polarity is {polarity!r}; it must be 1 (negative) or 2 (positive)")
        texts.append(text.replace("\\n", "\n").replace('\\"', '"'))  # so its authors escaped them
        labels.append(_POLARITY[polarity])
    return Table(texts, labels, order=list(SENTIMENTS))


def _read_stars(path: Path) -> Table:
    table = Table([], [], order=list(SENTIMENTS))
    row = 0
    for row, (stars, text) in enumerate(read_columns(path, ["stars", "text"]), 1):
        label = _label_of(stars, f"{path} data row {row}")
        if label is not None:
            table.texts.append(text)
            table.labels.append(label)
            table.rows.append(row)
    print(f"{path}: dropped {row - len(table.rows):,} of {row:,} reviews, of 3 stars, which are neither")
    return table


def _label_of(stars: str, place: str) -> str | None:
    try:
        return _STARS[float(stars)]
    except (KeyError, ValueError) as error:
        raise UsageError(f"{place}: stars is {stars!r}; it must be 1, 2, 3, 4 or 5") from error
