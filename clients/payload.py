"""Texts into request tensors and answers into numbers: pure functions, no transport.

Shapes: B texts of one request, C classes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from clients.errors import BadRequest
from contract.tensors import MAX_BATCH_SIZE, MAX_TEXT_BYTES

Texts = npt.NDArray[np.object_]


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
