"""`loadtests.texts`: which texts are sent, and in which order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from contract.files import write_json_lines
from loadtests.texts import group_texts, read_texts


def lines(path: Path, *rows: Any) -> Path:
    write_json_lines(path / "texts.jsonl", rows)
    return path / "texts.jsonl"


def numbered(path: Path, count: int = 50) -> Path:
    return lines(path, *({"text": f"text {number}", "label": "a"} for number in range(count)))


def test_every_text_is_read_once_in_a_shuffled_order(tmp_path: Path) -> None:
    texts = read_texts(numbered(tmp_path))
    in_order = [f"text {number}" for number in range(50)]
    assert Counter(texts) == Counter(in_order)
    assert texts != in_order


def test_a_seed_gives_one_order_and_another_seed_another(tmp_path: Path) -> None:
    path = numbered(tmp_path)
    assert read_texts(path, seed=1) == read_texts(path, seed=1)
    assert read_texts(path, seed=1) != read_texts(path, seed=2)


def test_a_limit_takes_the_first_of_the_shuffled_texts(tmp_path: Path) -> None:
    path = numbered(tmp_path)
    assert read_texts(path, limit=7) == read_texts(path)[:7]
    assert len(read_texts(path, limit=1000)) == 50


def test_texts_are_kept_as_they_are_and_twice_when_they_are_there_twice(tmp_path: Path) -> None:
    texts = [" padded ", "naïve 木 \U0001f600", "two\nlines", "same", "same"]
    assert sorted(read_texts(lines(tmp_path, *({"text": text} for text in texts)))) == sorted(texts)


@pytest.mark.parametrize("row", [{"text": ""}, {"text": " \n"}, {"text": 3}, {"texts": "a"}, ["text"], "text", None])
def test_rows_without_a_text_are_left_out(tmp_path: Path, row: Any) -> None:
    assert read_texts(lines(tmp_path, row, {"text": "kept"})) == ["kept"]


@pytest.mark.parametrize("rows", [[], [{"text": " "}], [{"sentence": "a"}]])
def test_a_file_without_texts_is_refused(tmp_path: Path, rows: list[Any]) -> None:
    with pytest.raises(UsageError, match=r"texts\.jsonl holds no texts; each line must be a JSON object"):
        read_texts(lines(tmp_path, *rows))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent\.jsonl"):
        read_texts(tmp_path / "absent.jsonl")


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = numbered(tmp_path, 2)
    with path.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UsageError, match=r"texts\.jsonl line 3 is not JSON"):
        read_texts(path)


def test_a_csv_gives_its_column_and_a_txt_its_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,body\n1,"one, two"\n2,three\n3,\n4\n', encoding="utf-8")
    (tmp_path / "t.txt").write_text("one\n\n two \n", encoding="utf-8")
    assert sorted(read_texts(tmp_path / "t.csv", column="body")) == ["one, two", "three"]
    assert sorted(read_texts(tmp_path / "t.txt")) == [" two ", "one"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"id,body\n1,a\n", "has no column 'text'; it has 'id', 'body'"),
        ("t.csv", b"", "has no column 'text'; it has "),
        ("t.csv", b"text\n\xff\n", "cannot read .* as CSV"),
        ("t.csv", b'text\n"open\n', "cannot read .* as CSV"),
        ("t.csv", b"text\n \n", "holds no texts; its column 'text' is empty"),
        ("t.txt", b"\xff", "cannot read"),
        ("t.txt", b"\n\n", "holds no texts; each line that is not blank is one"),
    ],
)
def test_a_broken_csv_or_txt_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_texts(tmp_path / name)


def test_texts_are_grouped_in_order_and_what_is_left_over_is_not_sent() -> None:
    assert group_texts(["a", "b", "c", "d", "e"], 2) == [("a", "b"), ("c", "d")]
    assert group_texts(["a"], 2) == []
