"""`builders.calibration`: training texts and nothing else, or an error that says what to pass."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from builders.calibration import Calibration, read_calibration
from contract.command import UsageError
from training.checkpoint import Checkpoint, load_checkpoint, read_heldout
from training.readers import read_texts


@pytest.fixture
def checkpoint(merged: Path) -> Checkpoint:
    return load_checkpoint(merged)


def with_data(checkpoint: Checkpoint, data: Path) -> Checkpoint:
    """The checkpoint as if it had been trained on `data`."""
    run: dict[str, Any] = checkpoint.run | {"configuration": checkpoint.run["configuration"] | {"data": str(data)}}
    return dataclasses.replace(checkpoint, run=run)


def test_the_runs_own_training_and_validation_parts_are_read_again(checkpoint: Checkpoint, tiny_csv: Path) -> None:
    found = read_calibration(checkpoint, None, rows=10_000)
    parts = checkpoint.run["data"]["parts"]
    assert (len(found.texts), len(found.validation)) == (parts["train"]["rows"], parts["validation"]["rows"])
    held_out = {row["text"] for row in read_heldout(checkpoint.folder)}
    assert held_out.isdisjoint([*found.texts, *found.validation])
    with tiny_csv.open(newline="", encoding="utf-8") as file:
        known = {row["sentence"]: row["kind"] for row in csv.DictReader(file)}
    assert [checkpoint.labels[label] for label in found.labels] == [known[text] for text in found.validation]
    assert found.origin == "the training part of sentences"


def test_no_more_rows_are_taken_than_asked_for(checkpoint: Checkpoint) -> None:
    found = read_calibration(checkpoint, None, rows=3)
    assert (len(found.texts), len(found.validation), len(found.labels)) == (3, 3, 3)
    whole = read_calibration(checkpoint, None, rows=10_000)
    places = [whole.validation.index(text) for text in found.validation]
    assert places == [0, len(whole.validation) // 3, 2 * len(whole.validation) // 3], "a data set may be sorted by class"


def test_a_few_validation_texts_are_taken_from_all_of_them(checkpoint: Checkpoint) -> None:
    texts, numbers = [f"cat {number}" for number in range(8)], [[float(number)] for number in range(8)]
    found = Calibration([], texts, [0] * 4 + [1] * 4, "these", [], numbers)
    encoded, whole = (found.encode_validation(checkpoint.tokenizer, rows) for rows in (2, None))
    assert encoded.ids == [whole.ids[0], whole.ids[4]]
    assert encoded.labels == [0, 1]
    assert encoded.features is not None
    assert encoded.features.tolist() == [[0.0], [4.0]]
    assert len(whole.ids) == len(whole.labels) == 8
    unlabelled = Calibration([], texts, [], "these").encode_validation(checkpoint.tokenizer, 2)
    assert (unlabelled.ids, unlabelled.labels) == (encoded.ids, [])


def test_data_that_is_gone_is_an_error_that_names_the_way_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read again .* pass some by --calibration-texts FILE"):
        read_calibration(with_data(checkpoint, tmp_path / "gone.csv"), None, rows=8)


def test_data_that_changed_is_refused(checkpoint: Checkpoint, tiny_csv: Path, tmp_path: Path) -> None:
    text = tiny_csv.read_text(encoding="utf-8")
    changed = tmp_path / "sentences.csv"
    changed.write_text(text.replace("the", "thy"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"has changed since it was trained .* --calibration-texts FILE"):
        read_calibration(with_data(checkpoint, changed), None, rows=8)


def test_every_second_text_of_a_file_calibrates_and_the_others_judge(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\n\ntwo\nthree\n  \nfour\nfive\n", encoding="utf-8")
    found = read_calibration(checkpoint, path, rows=100)
    assert (found.texts, found.validation, found.labels) == (["one", "three", "five"], ["two", "four"], [])


def test_held_out_texts_of_a_file_are_not_calibrated_on_and_no_text_twice(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [row["text"] for row in read_heldout(checkpoint.folder)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*held, "one", held[0].upper(), "two", "ONE ", "three", "four"]), encoding="utf-8")
    found = read_calibration(checkpoint, path, rows=100)
    assert ([text.casefold().strip() for text in found.texts], found.validation) == (["one", "three"], ["two", "four"])
    assert f"{len(held) + 2} of {len(held) + 6} texts are left out" in capsys.readouterr().out
    path.write_text("\n".join([*held, "one"]), encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds 1 text\(s\) that are not held out; at least 2 are needed"):
        read_calibration(checkpoint, path, rows=100)


@pytest.mark.parametrize("content", ["", "\n\n  \n", "one\n"])
def test_a_file_without_texts_is_refused(checkpoint: Checkpoint, tmp_path: Path, content: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds [01] text\(s\) that are not held out; at least 2 are needed"):
        read_calibration(checkpoint, path, rows=4)


def test_every_format_gives_its_texts(tmp_path: Path) -> None:
    texts = ['a "quoted" one', "two, with a comma", "long " * 30_000]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "x": 1}) + "\n" for text in texts))
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "text"), *((1, text) for text in texts)])
    (tmp_path / "a.txt").write_text("\n".join(texts))
    assert [read_texts(tmp_path / name) for name in ("a.jsonl", "a.csv", "a.txt")] == [texts] * 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"words": "a"}\n', 'must have a "text" in every line'),
        ("a.jsonl", "[1]\n", 'must have a "text" in every line'),
        ("a.jsonl", '{"text": 3}\n', 'every "text" must be a string'),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', r"a\.jsonl line 2: the text holds half a surrogate pair"),
        ("a.csv", b"text\n\xed\xa0\x80\n", "is not UTF-8"),
        ("a.csv", "words\na\n", "has no column 'text'; it has 'words'"),
        ("a.csv", 'text\n"a', "is not a well-formed CSV"),
        ("a.csv", "text\na, b\n", "its cells are shifted"),
        ("b.txt", None, "cannot read the texts of"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: str | bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=said):
        read_texts(tmp_path / name)
