"""What can go wrong between a text and its label.

* ClassifierError
  x Unavailable   nobody answers there, or the model is not loaded; try again later
  x TimedOut      no answer within the deadline
  x Rejected      the server is full and said so at once; back off, then try again
  x BadRequest    the texts cannot be classified as they are; trying again is useless
  x ServerError   the server failed on a request that looked right
"""

from __future__ import annotations


class ClassifierError(Exception):
    """Base of all: catch this to catch every failure of a call."""


class Unavailable(ClassifierError):  # noqa: N818 - named as gRPC names the status
    """Nobody answers at the address, or the classifier is not loaded."""


class TimedOut(ClassifierError):  # noqa: N818
    """No answer within the deadline; the server may still be working on it."""


class Rejected(ClassifierError):  # noqa: N818
    """The server's queue is full."""


class BadRequest(ClassifierError):  # noqa: N818
    """The request is wrong: an empty, oversized or undecodable text."""


class ServerError(ClassifierError):
    """The server failed on the request."""


_QUEUE_MESSAGES = ("Exceeds maximum queue size", "Request timeout expired")


def from_status(status: str, message: str, url: str) -> ClassifierError:
    """The error for a status of gRPC (`StatusCode.UNAVAILABLE`) or of HTTP (`503`), with Triton's own message."""
    code = status.removeprefix("StatusCode.")
    text = f"{url}: {message}"
    if any(part in message for part in _QUEUE_MESSAGES):
        return Rejected(text)
    if code in {"DEADLINE_EXCEEDED", "499", "504"}:
        return TimedOut(text)
    if code in {"INVALID_ARGUMENT", "400"}:
        return BadRequest(text)
    if code in {"UNAVAILABLE", "NOT_FOUND", "404", "502", "503"}:
        return Unavailable(text)
    return ServerError(f"{text} (status {code})")
