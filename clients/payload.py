"""Texts into request tensors and answers into numbers: pure functions, no transport.

Shapes: B texts of one request, F features beside each, C classes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clients.errors import BadRequest
from contract.features import wanted_in
from contract.tensors import MAX_BATCH_SIZE, MAX_TEXT_BYTES

Texts = npt.NDArray[np.object_]
Numbers = npt.NDArray[np.float32]
Features = Sequence[float] | Mapping[str, float]
"""The numbers beside one text: in the release's order, or by name."""

ASKING = "Which features are read?"
"""A text that is sent without any, so that a release that reads features names them (`contract.features`)."""


def encode_texts(texts: Sequence[str]) -> Texts:
    """[B, 1] of UTF-8 bytes, for any number of texts.

    Raises:
        BadRequest: a text is no string, is empty, is not valid Unicode, or is over `MAX_TEXT_BYTES`; its place is named.
        TypeError: a single string instead of a sequence.
    """
    if isinstance(texts, str | bytes):
        raise TypeError("texts is one string; give a list of strings, [text]")
    encoded = np.empty((len(texts), 1), dtype=np.object_)
    for number, text in enumerate(texts):
        encoded[number, 0] = encode_text(text, f"text {number}")
    return encoded


def encode_text(text: str, name: str = "the text") -> bytes:
    """UTF-8 of one text; raises `BadRequest` as `encode_texts` does, calling it `name`."""
    if not isinstance(text, str):
        raise BadRequest(f"{name} is a {type(text).__name__}; a str is needed")
    if not text.strip():
        raise BadRequest(f"{name} is empty: there is nothing to classify")
    try:
        value = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(f"{name} is not valid Unicode: {error}") from error
    if len(value) > MAX_TEXT_BYTES:
        raise BadRequest(f"{name} has {len(value)} bytes; at most {MAX_TEXT_BYTES} are allowed: shorten it")
    return value


def encode_features(features: Sequence[Features], texts: int, names: Sequence[str] = ()) -> Numbers:
    """[B, F] of the numbers beside each of so many texts; `names` are the release's, which mappings are ordered by.

    What is no number is refused here, what is not finite by the server, which names it.

    Raises:
        BadRequest: another number of rows than texts, rows of different lengths, a name that is missing or not the release's,
            or a value that is no number; its place is named.
    """
    if len(features) != texts:
        raise BadRequest(f"{len(features)} rows of features come with {texts} texts; one for each is needed")
    rows = [
        _in_order(row, number, names) if isinstance(row, Mapping) else _as_given(row, number)
        for number, row in enumerate(features)
    ]
    found = np.empty((texts, len(rows[0]) if rows else 0), dtype=np.float32)
    for number, row in enumerate(rows):
        if len(row) != found.shape[1]:
            raise BadRequest(f"text {number} has {len(row)} features, text 0 has {found.shape[1]}; all need the same")
        for place, value in enumerate(row):
            found[number, place] = _number(value, f"text {number}: the feature {names[place] if names else place}")
    return found


def by_name(features: Sequence[Features] | None) -> bool:
    """Whether the release's names are needed to put these in order."""
    return features is not None and any(isinstance(row, Mapping) for row in features)


def names_wanted(refusal: BadRequest) -> list[str]:
    """The names of the features that a server wants. Raises `refusal` itself where it is about something else."""
    if names := wanted_in(str(refusal)):
        return names
    raise refusal


def _as_given(row: Any, number: int) -> list[Any]:
    try:
        return list(row)
    except TypeError as error:
        raise BadRequest(f"text {number} has the features {row!r}; a list of numbers, or numbers by name, is needed") from error


def _in_order(row: Mapping[str, float], number: int, names: Sequence[str]) -> list[float]:
    for what, wrong in (
        ("lacks", [name for name in names if name not in row]),
        ("has", [name for name in row if name not in names]),
    ):
        if wrong:
            raise BadRequest(
                f"text {number} {what} the feature {wrong[0]!r}; this release reads {', '.join(names) or 'text alone'}"
            )
    return [row[name] for name in names]


def _number(value: Any, name: str) -> float:
    """`value` as the server gets it: beyond FP32 it is infinite, which the server refuses."""
    try:
        if not isinstance(value, str | bytes | bool):
            with np.errstate(over="ignore"):
                return float(np.float32(float(value)))
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRequest(f"{name} is {value!r}; a finite number is needed")


def batch_slices(count: int) -> Iterator[slice]:
    """The requests that `count` texts travel in: at most `MAX_BATCH_SIZE` each, in order."""
    return (slice(start, start + MAX_BATCH_SIZE) for start in range(0, count, MAX_BATCH_SIZE))


def request_ids(count: int, given: str = "") -> list[str]:
    """The ids of the requests of one call: `given`, or a random one, with "/0", "/1", ... added where there are several."""
    name = given or uuid.uuid4().hex
    return [name] if count == 1 else [f"{name}/{number}" for number in range(count)]


def parse_classes(row: Sequence[bytes]) -> dict[str, float]:
    """One row of Triton's classification extension, `b"logit:index:label"` each, as label -> logit, by rising index."""
    parts = [value.decode("utf-8").split(":", 2) for value in row]
    return {label: float(logit) for logit, _, label in sorted(parts, key=lambda part: int(part[1]))}


def softmax(logits: Sequence[float]) -> list[float]:
    """exp(x) / sum exp(x), stable for large x."""
    values = np.asarray(logits, dtype=np.float64)
    exponents = np.exp(values - values.max())
    shares: list[float] = (exponents / exponents.sum()).tolist()
    return shares
