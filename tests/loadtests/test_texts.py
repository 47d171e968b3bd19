"""`loadtests.texts`: which texts are sent, and in which order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from contract.files import write_json_lines
from loadtests.texts import read_texts


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
