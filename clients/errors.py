"""What can go wrong between a text and its label.

* ClassifierError
  x Unavailable   nobody answers there, or the model is not loaded or just restarting; try again later
    x Untrusted   no TLS connection: a certificate is missing or not trusted; trying again is useless
  x TimedOut      no answer within the deadline
  x Rejected      the server is full and said so at once; back off, then try again
  x BadRequest    the texts cannot be classified as they are; trying again is useless
  x ServerError   the server failed on a request that looked right
"""

from __future__ import annotations


class ClassifierError(Exception):
    """Base of all: catch this to catch every failure of a call.

    `request_id` and `attempts` are no part of the message, so that failures of one kind still count as one kind in statistics;
    `describe` has them all.
    """

    request_id: str = ""
    """The id that the request was sent with, as the server's log shows it; "" when nothing was sent."""
    attempts: int = 1
    """How often the request was sent."""


class Unavailable(ClassifierError):  # noqa: N818 - named as gRPC names the status
    """Nobody answers at the address, or the classifier is not loaded."""


class Untrusted(Unavailable):
    """The TLS handshake failed."""


class TimedOut(ClassifierError):  # noqa: N818
    """No answer within the deadline; the server may still be working on it."""


class Rejected(ClassifierError):  # noqa: N818
    """The server's queue is full."""


class BadRequest(ClassifierError):  # noqa: N818
    """The request is wrong: an empty, oversized or undecodable text."""


class ServerError(ClassifierError):
    """The server failed on the request."""


_FULL = ("Exceeds maximum queue size", "Request timeout expired", "overloaded")
# Triton's words for a python model whose process died; another replaces it.
_DEAD_WORKER = ("is not healthy", "is unhealthy", "Failed to obtain the health mutex")
_TLS = ("SSL", "Ssl", "CERTIFICATE", "certificate")

_KINDS: dict[str, type[ClassifierError]] = {
    "DEADLINE_EXCEEDED": TimedOut,
    "499": TimedOut,
    "504": TimedOut,
    "INVALID_ARGUMENT": BadRequest,
    "400": BadRequest,
    "413": BadRequest,
    "RESOURCE_EXHAUSTED": Rejected,
    "429": Rejected,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Unavailable,  # by the server as it stops: a caller's own cancelling never becomes an error of ours
    "NOT_FOUND": Unavailable,
    "404": Unavailable,
    "502": Unavailable,
    "503": Unavailable,
}


def from_status(status: str, message: str, url: str) -> ClassifierError:
    """The error for a status of gRPC (`StatusCode.UNAVAILABLE`) or of HTTP (`503`), with Triton's own message."""
    code = status.removeprefix("StatusCode.")
    text = f"{url}: {message}"
    if any(part in message for part in _FULL):
        return Rejected(text)
    if "larger than max" in message:  # gRPC calls a message over its limit RESOURCE_EXHAUSTED, like a full server
        return BadRequest(text)
    if any(part in message for part in _DEAD_WORKER):
        return Unavailable(text)
    if code == "UNAVAILABLE" and any(part in message for part in _TLS):
        return untrusted(url, message)
    kind = _KINDS.get(code)
    return kind(text) if kind else ServerError(f"{text} (status {code})")


def untrusted(url: str, message: object) -> Untrusted:
    """The error of a TLS handshake that failed."""
    return Untrusted(
        f"{url}: no TLS connection: {message}; check that the server speaks TLS on this port, that the CA file is that of its "
        "certificate, that the certificate names this host, and whether it asks for a certificate of the client"
    )


def describe(error: ClassifierError) -> str:
    """One line for a person: kind, message, how often it was tried, and the id to look for in the server's log."""
    parts = [f"{error.attempts} attempts"] if error.attempts > 1 else []
    parts += [f"request {error.request_id}"] if error.request_id else []
    return f"{type(error).__name__}: {error}" + (f" ({', '.join(parts)})" if parts else "")
