"""`training.datasets`: what is read of a file, in which order, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

import training.datasets
from contract.command import UsageError
from tests.training.csv_files import read, write_csv
from training.datasets import Dataset, group_of, read_csv, read_dataset


def test_a_csv_keeps_texts_as_they_stand_and_names_classes_in_order(tmp_path: Path) -> None:
    texts = ["NA", "null", "1.50", " spaced ", 'say "hi", you', "two\nlines", "日本語 🙂", "None"]
    rows = [(str(number), text, "03" if number % 2 else "1") for number, text in enumerate(texts)]
    dataset = read(write_csv(tmp_path / "my.reviews.csv", [("id", "review", "stars"), *rows]))
    assert dataset == Dataset("my", texts, [1, 0, 1, 0, 1, 0, 1, 0], ["03", "1"], [group_of(text) for text in texts])
    assert (dataset.feature_names, dataset.features) == ([], [])


def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("id", "body", "stars"), ("1", "good", "5")])
    with pytest.raises(UsageError, match=r"a\.csv has no column 'review'; it has 'id', 'body', 'stars'"):
        read(path)


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
    for name in ("csv", "stackoverflow", "stackoverflow5", "imdb", "yelp", "complaints"):
        with pytest.raises(UsageError, match=f"--dataset {name} needs --data FILE"):
            read(None, name=name)
    for missing in ("text", "label"):
        with pytest.raises(UsageError, match="--dataset csv needs --text COLUMN and --label COLUMN"):
            read(tmp_path / "a.csv", **{missing: None})


@pytest.mark.parametrize("name", ["csv", "imdb", "docstrings"])
def test_features_of_a_data_set_without_any_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--tabular needs --dataset stackoverflow or stackoverflow5; {name} has no numeric"):
        read(tmp_path / "a.csv", name=name, tabular=True)


@pytest.mark.parametrize("where", [0, 1, 2500], ids=["first row", "second row", "late"])
def test_a_row_with_more_fields_than_the_header_is_named_and_not_shifted(tmp_path: Path, where: int) -> None:
    lines = [f"{number},text {number},{number % 2}" for number in range(3000)]
    lines[where] = "7,good, but dear,1"
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["id,review,stars", *lines]) + "\n")
    with pytest.raises(UsageError, match=rf"data row {where + 1} has 4 fields, the first line 3, so its cells are shifted"):
        read(path)


def test_every_row_with_one_field_too_many_is_refused_too(tmp_path: Path) -> None:
    """pandas would take the first field for an index then, and shift all of them."""
    path = tmp_path / "a.csv"
    path.write_text("review,stars\ngood,5,\nbad,1,\n")
    with pytest.raises(UsageError, match="data row 1 has 3 fields"):
        read(path)


def test_a_short_row_is_filled_and_then_found_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,stars\ngood,5\n\nshort\nbad,1\n")
    with pytest.raises(UsageError, match=r"1 of 3 rows have an empty text or label \(data rows 2\)"):
        read(path)


def test_text_after_a_closing_quote_and_a_doubled_column_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('review,stars\ngood,5\n"very" bad,1\n')
    with pytest.raises(UsageError, match=r"not a well-formed CSV: .* \(after data row 1\)"):
        read(path)
    path.write_text("review,stars,stars\ngood,5,5\nbad,1,1\n")
    with pytest.raises(UsageError, match="has the column 'stars' twice"):
        read(path)


def test_a_text_longer_than_the_csv_module_reads_by_itself_is_read(tmp_path: Path) -> None:
    long = "word " * 60_000
    assert read(write_csv(tmp_path / "a.csv", [("review", "stars"), (long, "1"), ("b", "2")])).texts == [long, "b"]


def test_texts_that_differ_in_case_or_white_space_are_of_one_group(tmp_path: Path) -> None:
    texts = ["Great  Food", "great food", "\tGREAT\r\nfood ", "great food!", "greatfood"]
    rows = [(text, str(number % 2)) for number, text in enumerate(texts)]
    dataset = read(write_csv(tmp_path / "a.csv", [("review", "stars"), *rows]))
    assert dataset.texts == texts
    assert dataset.groups == ["great food"] * 3 + ["great food!", "greatfood"]


def test_docstrings_that_differ_in_case_or_white_space_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their groups are modules, so that two of them could come into two parts."""
    rows = (["Adds  two.", "Cuts.", "adds two."], ["numpy", "torch", "torch"], ["numpy/a.py", "torch/a.py", "torch/b.py"])
    monkeypatch.setattr(training.datasets, "read_docstrings", lambda cap, seed: rows)
    dataset = read(None, name="docstrings")
    assert (dataset.texts, dataset.groups) == (["Adds  two.", "Cuts."], ["numpy/a.py", "torch/a.py"])


def test_columns_come_in_the_order_asked_for_as_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("a", "b", "c"), ("1", "2", "3"), ("", "", "")])
    frame = read_csv(path, ["c", "a"])
    assert list(frame.columns) == ["c", "a"]
    assert frame.to_numpy().tolist() == [["3", "1"], ["", ""]]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,stars\ngood,1\nbad,2\n", encoding="utf-8-sig")
    assert read(path).texts == ["good", "bad"]


def test_a_label_of_two_lines_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,label\nfirst,good\nsecond,"two\nlines"\n')
    with pytest.raises(UsageError, match=r"'two\\nlines' is more than one line"):
        read_dataset("csv", data=path, text="text", label="label", drop_empty=False, seed=0)
