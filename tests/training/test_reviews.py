"""`training.reviews`: IMDB as a file and as a folder, Yelp with stars and without a header."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from contract.command import UsageError
from tests.training.csv_files import needs_real_data, read, real_file, write_csv

REVIEWS = {
    "train/pos/0_9.txt": "Fine.<br /><br />Really.",
    "train/pos/1_10.txt": "A<BR>B",
    "train/neg/0_2.txt": "Poor<br/>show",
    "test/pos/0_8.txt": "Good, mostly",
    "test/neg/0_1.txt": "Bad",
    "test/neg/1_1.txt": "Worse",
    "train/unsup/0_0.txt": "Unknown",
    "train/urls_pos.txt": "http://example.org",
}


def write_aclimdb(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_imdb_as_a_csv(tmp_path: Path) -> None:
    rows = [("id", "review", "sentiment"), ("1", "Fine.<br /><br />Really.", "positive"), ("2", "Bad", "negative")]
    dataset = read(write_csv(tmp_path / "IMDB Dataset.csv", rows), name="imdb")
    assert (dataset.name, dataset.names) == ("imdb", ["negative", "positive"])
    assert dataset.texts == ["Fine.  Really.", "Bad"]
    assert dataset.labels == [1, 0]


def test_imdb_as_the_folder_of_its_authors(tmp_path: Path) -> None:
    dataset = read(write_aclimdb(tmp_path / "aclImdb", REVIEWS), name="imdb")
    found = dict(zip(dataset.texts, dataset.labels, strict=True))
    assert found == {"Poor show": 0, "Fine.  Really.": 1, "A B": 1, "Bad": 0, "Worse": 0, "Good, mostly": 1}


def test_the_folder_with_one_part_is_read_and_an_incomplete_part_is_named(tmp_path: Path) -> None:
    only_train = {name: text for name, text in REVIEWS.items() if name.startswith("train")}
    assert len(read(write_aclimdb(tmp_path / "train_only", only_train), name="imdb").texts) == 3
    broken = {name: text for name, text in REVIEWS.items() if not name.startswith("test/pos")}
    with pytest.raises(UsageError, match=r"broken is not the folder aclImdb: .*broken/test/pos missing"):
        read(write_aclimdb(tmp_path / "broken", broken), name="imdb")
    with pytest.raises(UsageError, match=r"is not the folder aclImdb: train and test missing"):
        read(tmp_path, name="imdb")


def test_a_review_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = write_aclimdb(tmp_path / "aclImdb", REVIEWS)
    (folder / "test" / "neg" / "1_1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"cannot read .*test/neg/1_1\.txt"):
        read(folder, name="imdb")


def test_an_unknown_sentiment_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("review", "sentiment"), ("Fine", "positive"), ("Bad", "neg")])
    with pytest.raises(UsageError, match=r"a\.csv data row 2: sentiment is 'neg'; known are negative and positive"):
        read(path, name="imdb")


def test_stars_become_two_classes_and_those_between_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(stars, f"of {stars}") for stars in ("1", "2", "3", "4", "5", "3.0", "5.0")]
    dataset = read(write_csv(tmp_path / "yelp.csv", [("stars", "text"), *rows]), name="yelp")
    assert dataset.texts == ["of 1", "of 2", "of 4", "of 5", "of 5.0"]
    assert [dataset.names[label] for label in dataset.labels] == ["negative"] * 2 + ["positive"] * 3
    assert "dropped 2 of 7 reviews, of 3 stars" in capsys.readouterr().out


@pytest.mark.parametrize("stars", ["0", "6", "4.5", "", "five", "nan"])
def test_stars_that_are_none_are_named_with_their_row(tmp_path: Path, stars: str) -> None:
    with pytest.raises(UsageError, match=rf"data row 2: stars is '{stars}'; it must be 1, 2, 3, 4 or 5"):
        read(write_csv(tmp_path / "a.csv", [("stars", "text"), ("1", "a"), (stars, "b")]), name="yelp")


def test_an_empty_review_is_named_by_its_row_in_the_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("stars", "text"), ("3", "a"), ("3", "b"), ("1", "c"), ("5", " "), ("5", "d")])
    with pytest.raises(UsageError, match=r"1 of 3 rows have an empty text or label \(data rows 4\)"):
        read(path, name="yelp")


def test_yelp_polarity_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('"1","Bad.\\nVery \\""bad\\"", too"\n"2","Good, ""really"""\n"2","Fine"\n', encoding="utf-8")
    dataset = read(path, name="yelp")
    assert dataset.texts == ['Bad.\nVery "bad", too', 'Good, "really"', "Fine"]
    assert [dataset.names[label] for label in dataset.labels] == ["negative", "positive", "positive"]


def test_a_polarity_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row 2: the polarity is '3'; it must be 1 \(negative\) or 2 \(positive\)"):
        read(write_csv(tmp_path / "a.csv", [("1", "a"), ("3", "b")]), name="yelp")


def test_another_csv_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("body", "kind"), ("a", "1")])
    with pytest.raises(UsageError, match="has no column 'stars', 'text'; it has 'body', 'kind'"):
        read(path, name="yelp")
    with pytest.raises(UsageError, match="has no column 'review', 'sentiment'"):
        read(path, name="imdb")


@needs_real_data
def test_the_real_imdb_reviews_are_balanced_and_without_tags() -> None:
    dataset = read(real_file("imdb_reviews"), name="imdb")
    assert Counter(dataset.names[label] for label in dataset.labels) == {"positive": 21_254, "negative": 21_250}
    assert not any("<br />" in text for text in dataset.texts)


@needs_real_data
def test_the_real_yelp_reviews_have_a_polarity_in_7251_cases(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = read(real_file("yelp_reviews_10k"), name="yelp")
    assert Counter(dataset.names[label] for label in dataset.labels) == {"positive": 5_834, "negative": 1_417}
    assert "dropped 1,249 of 8,500 reviews" in capsys.readouterr().out
