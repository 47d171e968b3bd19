"""`loadtests.readers.fields`: the right type or an error that names file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from loadtests.readers.fields import Fields, read_fields

FOUND = Fields({"n": 1, "t": "x", "f": True, "o": {"n": 2.5}, "l": [1, 2], "r": [{"n": 3}], "none": None}, "a.json")


def test_values_of_the_right_type_are_given() -> None:
    assert (FOUND.number("n"), FOUND.text("t"), FOUND.flag("f"), FOUND.numbers("l")) == (1.0, "x", True, [1.0, 2.0])
    assert (FOUND.fields("o").number("n"), FOUND.rows("r")[0].number("n")) == (2.5, 3.0)
    assert list(FOUND) == ["n", "t", "f", "o", "l", "r", "none"]


def test_null_is_as_good_as_absent() -> None:
    assert ("n" in FOUND, "none" in FOUND, "absent" in FOUND) == (True, False, False)


@pytest.mark.parametrize(
    ("method", "key", "said"),
    [
        ("number", "t", r"a\.json\.t is str 'x'; a number is needed"),
        ("number", "f", r"a\.json\.f is bool 'True'; a number is needed"),
        ("number", "none", r"a\.json\.none is NoneType; a number is needed"),
        ("text", "n", r"a\.json\.n is int '1'; a string is needed"),
        ("flag", "n", r"a\.json\.n is int '1'; true or false is needed"),
        ("fields", "n", r"a\.json\.n is int '1'; an object is needed"),
        ("rows", "o", r"a\.json\.o is dict; a list is needed"),
        ("rows", "l", r"a\.json\.l\[0\] is int '1'; an object is needed"),
        ("numbers", "r", r"a\.json\.r is dict; a list of numbers is needed"),
        ("number", "absent", r"a\.json\.absent is missing"),
    ],
)
def test_another_type_is_an_error_that_names_file_and_key(method: str, key: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        getattr(FOUND, method)(key)


def test_not_a_number_is_none() -> None:
    with pytest.raises(UsageError, match="a number is needed"):
        Fields({"n": float("nan")}, "a.json").number("n")


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "{broken", ""])
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsageError, match=r"a\.json"):
        read_fields(tmp_path / "a.json")


def test_nested_places_are_named_in_full() -> None:
    nested: Any = {"rounds": {"1": {"ours": {"peak_per_s": "fast"}}}}
    with pytest.raises(UsageError, match=r"p\.json\.rounds\.1\.ours\.peak_per_s is str 'fast'"):
        Fields(nested, "p.json").fields("rounds").fields("1").fields("ours").number("peak_per_s")
