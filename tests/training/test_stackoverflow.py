"""`training.stackoverflow`: texts, two or five classes, and the five numbers, each counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from tests.training.csv_files import needs_real_data, read, real_file, write_csv
from training.datasets import Dataset
from training.stackoverflow import FEATURES, STATUSES, TABULAR_COLUMNS

HEADER = ("Title", "BodyMarkdown", "OpenStatus")
ROWS = [
    ("How?", "With\r\nthis", "open"),
    ("Why?", "Too, broad", "not a real question"),
    ("Who?", 'A "quote"', "off topic"),
    ("When?", "Now", "not constructive"),
    ("Where?", "Here", "too localized"),
    ("What?", "NULL", "open"),
]
# PostCreationDate, OwnerCreationDate, ReputationAtPostCreation, Tag1 to Tag5
NUMBERS = [
    ("04/28/2010 15:25:08", "04/27/2010 15:25:08", "66", "a", "b", "c", "d", "e"),
    ("04/28/2010 15:25:08", "04/27/2010 15:25:09", "-4", "a", "", "", "", ""),
    ("03/01/2012 00:00:00", "2012-02-28", "1", "a", "b", "", "", ""),
    ("01/01/2011 00:00:00", "01/01/2010 00:00:00", "0", "", "", "", "", ""),
    ("01/01/2011 00:00:00", "01/02/2011 00:00:00", "12345", "a", "", "", "", "z"),
    ("01/01/2011 12:00:00", "01/01/2011 00:00:00", "1", "a", "b", "c", "", ""),
]


def read_questions(path: Path | None, **options: Any) -> Dataset:
    """`read_dataset` without column names."""
    return read(path, **({"name": "stackoverflow", "text": None, "label": None} | options))


def write_tabular(path: Path, **changes: str) -> Path:
    """All rows with their numbers; `changes` are made in the third row."""
    rows = [
        dict(zip((*HEADER, *TABULAR_COLUMNS), (*text, *more), strict=True)) for text, more in zip(ROWS, NUMBERS, strict=True)
    ]
    rows[2] |= changes
    return write_csv(path, [list(rows[0]), *(list(row.values()) for row in rows)])


def test_texts_are_title_and_body_and_labels_open_or_closed(tmp_path: Path) -> None:
    dataset = read_questions(write_csv(tmp_path / "train.csv", [HEADER, *ROWS]))
    assert dataset.texts == ["How? With\r\nthis", "Why? Too, broad", 'Who? A "quote"', "When? Now", "Where? Here", "What? NULL"]
    assert dataset.names == ["open", "closed"]
    assert dataset.labels == [0, 1, 1, 1, 1, 0]
    assert (dataset.feature_names, dataset.features) == ([], [])


def test_five_classes_keep_their_statuses_and_texts(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [HEADER, *ROWS])
    dataset = read_questions(path, name="stackoverflow5")
    assert (dataset.name, dataset.names) == ("stackoverflow5", STATUSES)
    assert dataset.labels == [0, 1, 2, 3, 4, 0]
    assert dataset.texts == read_questions(path).texts


@pytest.mark.parametrize("name", ["stackoverflow", "stackoverflow5"])
def test_the_five_numbers_of_each_question(tmp_path: Path, name: str) -> None:
    dataset = read_questions(write_tabular(tmp_path / "train.csv", Title="Who  else?"), name=name, tabular=True)
    assert dataset.feature_names == FEATURES
    assert dataset.features == [
        [1, 5, 66, 1, 1],  # a line break parts no words
        [0, 1, -4, 1, 2],  # a second short of a day
        [2, 2, 1, 3, 2],  # a leap year, the one date without a time, and two blanks, which have a word between them
        [365, 0, 0, 1, 1],
        [-1, 2, 12345, 1, 1],
        [0, 3, 1, 1, 1],
    ]
    assert all(isinstance(number, float) for row in dataset.features for number in row)


def test_numbers_are_read_only_when_asked_for(tmp_path: Path) -> None:
    assert read_questions(write_tabular(tmp_path / "train.csv", PostCreationDate="broken")).features == []


def test_the_numbers_of_dropped_rows_are_dropped(tmp_path: Path) -> None:
    path = write_tabular(tmp_path / "train.csv", Title=" ", BodyMarkdown=" ")
    kept, all_rows = (
        read_questions(path, drop_empty=True, tabular=True),
        read_questions(write_tabular(tmp_path / "all.csv"), tabular=True),
    )
    assert kept.features == all_rows.features[:2] + all_rows.features[3:]
    assert len(kept.features) == len(kept.texts)


def test_missing_columns_of_numbers_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [(*HEADER, *TABULAR_COLUMNS[1:7]), *((*row, *[""] * 6) for row in ROWS)])
    with pytest.raises(UsageError, match=r"--tabular needs the column\(s\) PostCreationDate, Tag5, which .*train\.csv has not"):
        read_questions(path, tabular=True)
    assert len(read_questions(path).texts) == 6


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("PostCreationDate", "28/04/2010 15:25:08"),
        ("PostCreationDate", ""),
        ("OwnerCreationDate", "2010-02-30"),
        ("ReputationAtPostCreation", "1,234"),
        ("ReputationAtPostCreation", ""),
        ("ReputationAtPostCreation", "nan"),
        ("ReputationAtPostCreation", "inf"),
    ],
)
def test_a_date_or_number_that_cannot_be_read_is_named_with_its_row(tmp_path: Path, column: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"train\.csv data row 3: {column} is {value!r}; "):
        read_questions(write_tabular(tmp_path / "train.csv", **{column: value}), tabular=True)


def test_the_closing_date_changes_nothing_since_it_gives_the_label_away(tmp_path: Path) -> None:
    dated = [(*row, *more, f"closed on {row[2]}") for row, more in zip(ROWS, NUMBERS, strict=True)]
    path = write_csv(tmp_path / "dated.csv", [(*HEADER, *TABULAR_COLUMNS, "PostClosedDate"), *dated])
    assert read_questions(path, tabular=True) == read_questions(write_tabular(tmp_path / "undated.csv"), tabular=True)


def test_an_unknown_status_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [HEADER, *ROWS, ("A", "b", "duplicate"), ("C", "d", "")])
    with pytest.raises(UsageError, match=r"OpenStatus holds \['', 'duplicate'\]; known are open, not a real question, "):
        read_questions(path)


def test_gzip_gives_what_the_plain_file_gives(tmp_path: Path) -> None:
    plain = read_questions(write_tabular(tmp_path / "train.csv"), tabular=True)
    assert read_questions(write_tabular(tmp_path / "train.csv.gz"), tabular=True) == plain


def test_missing_text_columns_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("id", "body"), ("1", "good")])
    with pytest.raises(UsageError, match=r"has no column 'Title', 'BodyMarkdown', 'OpenStatus'; it has 'id', 'body'"):
        read_questions(path)


@needs_real_data
def test_the_real_questions_are_42726_of_which_22483_are_open_each_with_its_numbers() -> None:
    dataset = read_questions(real_file("stackoverflow_closed_questions"), name="stackoverflow5", tabular=True)
    assert Counter(dataset.names[label] for label in dataset.labels) == {
        "open": 22_483,
        "not a real question": 7_749,
        "off topic": 6_375,
        "not constructive": 4_464,
        "too localized": 1_655,
    }
    assert dataset.texts[0].startswith('Does there exist an "idea checkout system" on the Internet? Greetings.')
    assert len(set(dataset.texts)) == 42_726
    assert dataset.features[0][:3] == [597, 2, 66]
    assert dataset.features[0][3] == len(
        ["Does", "there", "exist", "an", '"idea', "checkout", 'system"', "on", "the", "Internet?"]
    )
    age, tags, _, title, body = zip(*dataset.features, strict=True)
    assert (min(tags), max(tags)) == (1, 5)
    assert 1 <= min(title) <= max(title) <= 76
    assert min(body) >= 1 and 1_000 < max(body) <= 30_001
    assert max(age) < 5 * 366  # Stack Overflow opened in 2008, the file ends in 2012
