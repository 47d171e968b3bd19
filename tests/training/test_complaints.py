"""`training.complaints`: the published cleaning, step by step, and what the real file gives."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from contract.command import UsageError
from tests.training.csv_files import needs_real_data, read, real_file, write_csv
from training.complaints import MERGED, NARRATIVE, PRODUCT, Cleaning, clean, merge_product
from training.datasets import Dataset

TEN = "one two three four five six seven eight nine ten"


def write_complaints(path: Path, counts: dict[str, int], *more: tuple[str, str]) -> Path:
    """So many complaints of each product, each of 11 words and unlike the others, then `more`."""
    rows = [(product, f"{TEN} {product} {number}") for product, count in counts.items() for number in range(count)]
    return write_csv(path, [("id", PRODUCT, NARRATIVE), *((number, *row) for number, row in enumerate([*rows, *more]))])


def read_complaints(path: Path, seed: int = 0, **cleaning: float) -> Dataset:
    return read(path, name="complaints", seed=seed, cleaning=Cleaning(**cleaning))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("I paid {$39.00} on XX/XX/2020 -- don't!", "I paid 3900 on XXXX2020 dont"),
        ("one<br/>two <P CLASS='x'>three</P>\r\n four\t", "onetwo three four"),
        ("a balance < limit and limit > 0", "a balance limit and limit 0"),
        ("Case Stays, accents (café) do not", "Case Stays accents caf do not"),
        ("¿?", ""),
    ],
)
def test_cleaning_keeps_letters_digits_and_single_blanks(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


def test_thirteen_names_are_merged_under_six_labels_and_others_stay() -> None:
    names = [name for merged in MERGED.values() for name in merged]
    assert len(names) == len(set(names)) == 13
    assert len(MERGED) == 6
    assert merge_product("Prepaid card") == merge_product("Credit card or prepaid card") == "Credit card or prepaid card"
    assert merge_product("Virtual currency") == merge_product("Money transfers") == "Money transfer or virtual currency"
    assert merge_product("Mortgage") == "Mortgage"
    assert merge_product("Consumer Loan") == "Consumer Loan"
    assert all(merge_product(label) == label for label in MERGED)  # merged once is merged


def test_today_and_yesterday_of_a_product_are_one_class(tmp_path: Path) -> None:
    path = write_complaints(tmp_path / "a.csv", {"Credit card": 20, "Prepaid card": 15, "Mortgage": 30, "Consumer Loan": 29})
    dataset = read_complaints(path)
    assert Counter(dataset.names[label] for label in dataset.labels) == {"Credit card or prepaid card": 35, "Mortgage": 30}
    assert dataset.texts[0] == f"{TEN} Credit card 0"


def test_what_is_dropped_is_counted_and_the_threshold_counts_before_short_texts_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        ("Mortgage", TEN),
        ("Mortgage", "too short, it is"),
        ("", TEN),
        ("Mortgage", "  "),
        ("Mortgage", TEN.replace("ten", "<b>")),
    ]
    dataset = read_complaints(write_complaints(tmp_path / "a.csv", {"Mortgage": 28, "Debt collection": 30, "Other": 2}, *more))
    assert Counter(dataset.names[label] for label in dataset.labels) == {"Mortgage": 29, "Debt collection": 30}
    said = capsys.readouterr().out
    assert "65 complaints; dropped 2 without a product or a narrative" in said
    assert "dropped 2 of 'Other', which has fewer than 30" in said
    assert "dropped 2 of fewer than 10 words; kept 59 complaints about 2 products" in said


def test_a_share_is_drawn_at_random_from_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_complaints(tmp_path / "a.csv", {"Mortgage": 200, "Debt collection": 200})
    whole = read_complaints(path)
    drawn = [read_complaints(path, seed, sample_frac=0.25) for seed in (0, 0, 1)]
    assert [len(part.texts) for part in drawn] == [100] * 3
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0].texts) < set(whole.texts)
    assert 30 <= sum(drawn[0].labels) <= 70
    assert "dropped 300 at random" in capsys.readouterr().out


def test_words_and_threshold_can_be_set(tmp_path: Path) -> None:
    path = write_complaints(tmp_path / "a.csv", {"Mortgage": 5, "Debt collection": 4, "Student loan": 3})
    assert read_complaints(path, class_threshold=4).names == ["Debt collection", "Mortgage"]
    with pytest.raises(UsageError, match=r"complaints has 0 class \(no rows\)"):
        read_complaints(path, class_threshold=1, min_text_length=20)


def test_a_threshold_that_no_product_reaches_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--class-threshold is 30, but no product has more than 7 complaints; lower it"):
        read_complaints(write_complaints(tmp_path / "a.csv", {"Mortgage": 7, "Debt collection": 6}))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("sample_frac", 0.0, "--sample-frac is 0.0; it must be in (0, 1]"),
        ("sample_frac", 1.5, "--sample-frac is 1.5; it must be in (0, 1]"),
        ("class_threshold", 0, "--class-threshold is 0; it must be at least 1"),
        ("min_text_length", 0, "--min-text-length is 0; it must be at least 1"),
    ],
)
def test_options_outside_their_range_are_named(option: str, value: float, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        Cleaning(**{option: value})  # type: ignore[arg-type]


@needs_real_data
def test_the_real_complaints_are_about_nine_products() -> None:
    dataset = read(real_file("cfpb_complaints"), name="complaints")
    assert len(dataset.names) == 9
    assert len(dataset.texts) == 2_754 - 2 - 17  # of "Consumer Loan", and of fewer than ten words
    assert re.fullmatch(r"[A-Za-z0-9 ]+", "".join(dataset.texts))
    assert min(len(text.split()) for text in dataset.texts) == 10
    assert len(set(dataset.groups)) < len(dataset.groups)  # form letters
