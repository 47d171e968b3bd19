"""`clients.payload`: texts to bytes, answers to numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from clients.errors import BadRequest
from clients.payload import batch_slices, by_name, encode_features, encode_texts, parse_classes, softmax
from contract.tensors import MAX_BATCH_SIZE, MAX_TEXT_BYTES


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "b", "naïve 木 \U0001f600 \0"], ("a", "b"), [" a "]])
def test_texts_become_one_column_of_utf8(texts: list[str]) -> None:
    encoded = encode_texts(texts)
    assert encoded.shape == (len(texts), 1)
    assert encoded.dtype == np.object_
    assert [value.decode() for value in encoded[:, 0]] == list(texts)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("", "text 2 is empty"),
        (" \n\t\u2003", "text 2 is empty"),
        ("\ud83d", "text 2 is not valid Unicode"),
        ("x" * (MAX_TEXT_BYTES + 1), f"text 2 has {MAX_TEXT_BYTES + 1} bytes; at most {MAX_TEXT_BYTES}"),
        ("木" * (MAX_TEXT_BYTES // 3 + 1), f"at most {MAX_TEXT_BYTES} are allowed"),
        (b"bytes", "text 2 is a bytes; a str is needed"),
        (None, "text 2 is a NoneType; a str is needed"),
        (3, "text 2 is a int; a str is needed"),
    ],
)
def test_a_text_that_cannot_be_sent_is_named(bad: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        encode_texts(["fine", "fine too", bad])


def test_a_text_of_exactly_the_limit_is_sent() -> None:
    assert len(encode_texts(["x" * MAX_TEXT_BYTES])[0, 0]) == MAX_TEXT_BYTES


@pytest.mark.parametrize("text", ["one string", b"bytes"])
def test_a_single_string_is_not_taken_for_a_sequence_of_letters(text: Any) -> None:
    with pytest.raises(TypeError, match=r"give a list of strings, \[text\]"):
        encode_texts(text)


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (63, [63]), (64, [64]), (65, [64, 1]), (1000, [64] * 15 + [40])]
)
def test_requests_are_as_large_as_the_server_allows_and_cover_every_text_once(count: int, sizes: list[int]) -> None:
    parts = [list(range(count))[part] for part in batch_slices(count)]
    assert [len(part) for part in parts] == sizes
    assert [number for part in parts for number in part] == list(range(count))
    assert max(sizes, default=0) <= MAX_BATCH_SIZE


def test_classes_are_ordered_by_index_whatever_the_answers_order() -> None:
    assert list(parse_classes([b"2.5:2:c", b"1.0:0:a", b"-3.25:1:b"]).items()) == [("a", 1.0), ("b", -3.25), ("c", 2.5)]


def test_ten_classes_are_ordered_as_numbers_not_as_words() -> None:
    row = [f"{index}.5:{index}:label {index}".encode() for index in range(12)]
    random.Random(0).shuffle(row)
    assert list(parse_classes(row).values()) == [index + 0.5 for index in range(12)]


@pytest.mark.parametrize("label", ["a:b", ":", "::x", "http://a:80/b", "木", " padded ", "1:2:3"])
def test_a_label_may_hold_colons_and_anything_else(label: str) -> None:
    assert parse_classes([f"0.5:0:{label}".encode(), b"0.25:1:other"]) == {label: 0.5, "other": 0.25}


@pytest.mark.parametrize("value", ["1e-30", "-1.5e+20", "nan", "-inf"])
def test_every_way_of_writing_a_float_is_read(value: str) -> None:
    assert parse_classes([f"{value}:0:a".encode()])["a"] == pytest.approx(float(value), nan_ok=True)


@pytest.mark.parametrize("logits", [[0.0], [1.0, 2.0, 3.0], [-5.0, 5.0], [0.0] * 7])
def test_softmax_is_exp_over_the_sum_of_exp(logits: list[float]) -> None:
    total = sum(map(math.exp, logits))
    assert softmax(logits) == pytest.approx([math.exp(logit) / total for logit in logits], rel=1e-12)
    assert math.fsum(softmax(logits)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38])
def test_softmax_is_stable_far_from_zero(shift: float) -> None:
    assert softmax([shift, shift]) == [0.5, 0.5]
    assert softmax([shift, -shift])[0 if shift > 0 else 1] == 1.0


@pytest.mark.parametrize(
    "features",
    [
        [[1, 2.5], [3, -4]],
        ((1, 2.5), np.array([3, -4])),
        np.array([[1, 2.5], [3, -4]]),
        [{"b": 2.5, "a": 1}, {"a": np.float32(3), "b": -4}],
        [[1, 2.5], {"b": -4, "a": 3}],
    ],
    ids=["lists", "tuples", "array", "names", "mixed"],
)
def test_numbers_beside_texts_become_one_array(features: Any) -> None:
    encoded = encode_features(features, 2, ("a", "b"))
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[1.0, 2.5], [3.0, -4.0]]


def test_names_are_needed_for_mappings_alone() -> None:
    assert [by_name(features) for features in (None, [], [[1.0]], [{"a": 1.0}])] == [False, False, False, True]
    assert encode_features([], 0).shape == (0, 0)


def test_what_is_not_finite_is_left_to_the_server_which_names_it() -> None:
    encoded = encode_features([[float("nan"), float("inf"), 1e39, -1e39]], 1)
    assert [math.isfinite(value) for value in encoded[0]] == [False] * 4


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ([3, [1]], "text 0 has the features 3; a list of numbers, or numbers by name, is needed"),
        ([[1, 2]], "1 rows of features come with 2 texts; one for each is needed"),
        ([[1, 2], [1]], "text 1 has 1 features, text 0 has 2; all need the same"),
        ([[1, 2], [1, "3"]], "text 1: the feature b is '3'; a finite number is needed"),
        ([[None, 2], [1, 2]], "text 0: the feature a is None"),
        ([[1, 2], [1, True]], "text 1: the feature b is True"),
        ([[1, [2]], [1, 2]], r"text 0: the feature b is \[2\]"),
        ([[1, 10**400], [1, 2]], "text 0: the feature b is 1000"),
        ([{"a": 1}, [1, 2]], "text 0 lacks the feature 'b'; this release reads a, b"),
        ([[1, 2], {"a": 1, "b": 2, "c": 3}], "text 1 has the feature 'c'; this release reads a, b"),
    ],
)
def test_numbers_that_do_not_fit_the_texts_are_named(features: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        encode_features(features, 2, ("a", "b"))


def test_a_release_without_features_takes_no_names() -> None:
    with pytest.raises(BadRequest, match="text 0 has the feature 'a'; this release reads text alone"):
        encode_features([{"a": 1}], 1)
