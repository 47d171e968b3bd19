"""`training.datasets`: what is read of a file, in which order, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import gzip
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from contract.command import UsageError
from training.datasets import Dataset, read_csv, read_dataset

STACKOVERFLOW = [
    ("Title", "BodyMarkdown", "OpenStatus"),
    ("How?", "With\r\nthis", "open"),
    ("Why?", "Too, broad", "not a real question"),
    ("Who?", 'A "quote"', "off topic"),
    ("When?", "Now", "not constructive"),
    ("Where?", "Here", "too localized"),
    ("What?", "NULL", "open"),
]


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Write `rows`, gzip-compressed where the name ends in .gz."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def read(path: Path | None, **options: Any) -> Dataset:
    """`read_dataset` of a CSV with the columns `review` and `stars`."""
    given: dict[str, Any] = {"text": "review", "label": "stars", "drop_empty": False, "seed": 0} | options
    return read_dataset(given.pop("name", "csv"), data=path, **given)


def read_stackoverflow(path: Path | None) -> Dataset:
    """`read_dataset` without column names."""
    return read(path, name="stackoverflow", text=None, label=None)


def test_stackoverflow_texts_are_title_and_body_and_labels_open_or_closed(tmp_path: Path) -> None:
    dataset = read_stackoverflow(write_csv(tmp_path / "train.csv", STACKOVERFLOW))
    assert dataset.texts == ["How? With\r\nthis", "Why? Too, broad", 'Who? A "quote"', "When? Now", "Where? Here", "What? NULL"]
    assert dataset.names == ["open", "closed"]
    assert dataset.labels == [0, 1, 1, 1, 1, 0]
    assert dataset.groups == dataset.texts


def test_the_closing_date_is_never_read_since_it_gives_the_label_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas is only watched here, to see which columns leave the file."""
    with_date = [(*row, f"closed on {number}") for number, row in enumerate(STACKOVERFLOW)]
    with_date[0] = (*STACKOVERFLOW[0], "PostClosedDate")
    frames: list[pandas.DataFrame] = []
    real = pandas.read_csv

    def watched(*arguments: Any, **options: Any) -> pandas.DataFrame:
        frames.append(real(*arguments, **options))
        return frames[-1]

    monkeypatch.setattr(pandas, "read_csv", watched)
    dataset = read_stackoverflow(write_csv(tmp_path / "dated.csv", with_date))
    assert [set(frame.columns) for frame in frames if len(frame)] == [set(STACKOVERFLOW[0])]
    assert not any("closed on" in text for text in dataset.texts)
    assert dataset == read_stackoverflow(write_csv(tmp_path / "undated.csv", STACKOVERFLOW))


def test_an_unknown_status_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", [*STACKOVERFLOW, ("A", "b", "duplicate"), ("C", "d", "")])
    with pytest.raises(UsageError, match=r"OpenStatus holds \['', 'duplicate'\]; known are open and \['not a real question', "):
        read_stackoverflow(path)


def test_gzip_gives_what_the_plain_file_gives(tmp_path: Path) -> None:
    plain = read_stackoverflow(write_csv(tmp_path / "train.csv", STACKOVERFLOW))
    assert read_stackoverflow(write_csv(tmp_path / "train.csv.gz", STACKOVERFLOW)) == plain


def test_a_csv_keeps_texts_as_they_stand_and_names_classes_in_order(tmp_path: Path) -> None:
    texts = ["NA", "null", "1.50", " spaced ", 'say "hi", you', "two\nlines", "日本語 🙂", "None"]
    rows = [(str(number), text, "03" if number % 2 else "1") for number, text in enumerate(texts)]
    dataset = read(write_csv(tmp_path / "my.reviews.csv", [("id", "review", "stars"), *rows]))
    assert dataset == Dataset("my", texts, [1, 0, 1, 0, 1, 0, 1, 0], ["03", "1"], texts)


def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("id", "body", "stars"), ("1", "good", "5")])
    with pytest.raises(UsageError, match=r"a\.csv has no column 'review'; it has 'id', 'body', 'stars'"):
        read(path)
    with pytest.raises(UsageError, match=r"has no column 'Title', 'BodyMarkdown', 'OpenStatus'; it has 'id'"):
        read_stackoverflow(path)


def test_the_same_column_for_text_and_label_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("review", "stars"), ("good", "5"), ("bad", "1")])
    with pytest.raises(UsageError, match="text and label are the same column, 'stars'"):
        read(path, text="stars")


@pytest.mark.parametrize(("rows", "said"), [([("a", "1"), ("b", "1")], r"1 class \(1\)"), ([], r"0 class \(no rows\)")])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, rows: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UsageError, match=f"a has {said}; a classifier needs at least 2"):
        read(write_csv(tmp_path / "a.csv", [("review", "stars"), *rows]))


def test_empty_texts_and_labels_are_counted_and_their_rows_named(tmp_path: Path) -> None:
    rows = [("good", "5"), ("", "1"), ("bad", "1"), (" \t", "5"), ("fine", "  ")]
    path = write_csv(tmp_path / "a.csv", [("review", "stars"), *rows])
    with pytest.raises(UsageError, match=r"3 of 5 rows have an empty text or label \(data rows 2, 4, 5\); .* --drop-empty"):
        read(path)
    assert read(path, drop_empty=True) == Dataset("a", ["good", "bad"], [1, 0], ["1", "5"], ["good", "bad"])


def test_of_many_empty_rows_five_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("review", "stars"), *[("", "1")] * 7])
    with pytest.raises(UsageError, match=r"7 of 7 rows .* \(data rows 1, 2, 3, 4, 5, \.\.\.\)"):
        read(path)


def broken_gzip(kind: str) -> bytes:
    """A gzip file of 20,000 rows with one fault."""
    generator = Counter(range(20_000))
    whole = gzip.compress(("review,stars\n" + "".join(f"text {n * n % 7919},{n % 2}\n" for n in generator)).encode(), mtime=0)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    wrong_sum = bytearray(whole)
    wrong_sum[-6] ^= 0xFF
    kinds = {
        "cut off": whole[: len(whole) // 2],
        "only a header": whole[:12],
        "a flipped byte": bytes(flipped),
        "a wrong checksum": bytes(wrong_sum),
        "not compressed": b"review,stars\na,b\n",
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["cut off", "only a header", "a flipped byte", "a wrong checksum", "not compressed"])
def test_a_broken_gzip_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(broken_gzip(kind))
    with pytest.raises(UsageError, match=r"a\.csv\.gz is a broken gzip file \(.*\); fetch it again"):
        read(path)


@pytest.mark.parametrize("rows", [1, 200_000], ids=["at the start", "late"])
def test_a_file_that_is_not_utf_8_is_refused_with_its_conversion(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"review,stars\n" + b"good,1\n" * rows + "café,2\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"a\.csv is not UTF-8 .* iconv -f WINDOWS-1252 -t UTF-8"):
        read(path)


@pytest.mark.parametrize("content", [b"", b'review,stars\n"never closed,1\n'], ids=["empty", "an open quote"])
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.csv is not a well-formed CSV"):
        read(path)


def test_a_file_that_does_not_exist_or_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the data file .*nowhere\.csv does not exist"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(UsageError, match=f"cannot read {tmp_path}"):
        read(tmp_path)


def test_options_that_a_data_set_needs_are_named(tmp_path: Path) -> None:
    for name in ("csv", "stackoverflow"):
        with pytest.raises(UsageError, match=f"--dataset {name} needs --data FILE"):
            read(None, name=name)
    for missing in ("text", "label"):
        with pytest.raises(UsageError, match="--dataset csv needs --text COLUMN and --label COLUMN"):
            read(tmp_path / "a.csv", **{missing: None})


def test_columns_come_in_the_order_asked_for_as_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("a", "b", "c"), ("1", "2", "3"), ("", "", "")])
    frame = read_csv(path, ["c", "a"])
    assert list(frame.columns) == ["c", "a"]
    assert frame.to_numpy().tolist() == [["3", "1"], ["", ""]]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,stars\ngood,1\nbad,2\n", encoding="utf-8-sig")
    assert read(path).texts == ["good", "bad"]


@pytest.mark.skipif("BERT_TEST_DATA" not in os.environ, reason="BERT_TEST_DATA names no folder of data sets")
def test_the_real_stack_overflow_questions_are_42726_of_which_22483_are_open() -> None:
    dataset = read_stackoverflow(Path(os.environ["BERT_TEST_DATA"]) / "stackoverflow_closed_questions" / "train.csv.gz")
    assert Counter(dataset.names[label] for label in dataset.labels) == {"open": 22_483, "closed": 42_726 - 22_483}
    assert dataset.texts[0].startswith('Does there exist an "idea checkout system" on the Internet? Greetings.')
    assert len(set(dataset.texts)) == 42_726


def test_a_label_of_two_lines_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,label\nfirst,good\nsecond,"two\nlines"\n')
    with pytest.raises(UsageError, match=r"'two\\nlines' is more than one line"):
        read_dataset("csv", data=path, text="text", label="label", drop_empty=False, seed=0)
