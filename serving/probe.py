"""Real requests that a supervisor asks of its server over HTTP on loopback, at most one of a kind under way.

The supervisor never waits for an answer: it looks, and a request without an answer grows older. Plain HTTP, so nothing here
depends on the certificates that gRPC clients may have to show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

from contract.tensors import ATTENTION_MASK, CLASSIFIER, ENGINE, INPUT_IDS, TEXT, TOKENIZER

PROBE_TEXT = "Which release is this?"

_TEXT_INPUT = [{"name": TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [PROBE_TEXT]}]
_IDS_INPUT = [{"name": name, "shape": [1, 1], "datatype": "INT32", "data": [1]} for name in (INPUT_IDS, ATTENTION_MASK)]
_INPUTS = {CLASSIFIER: _TEXT_INPUT, TOKENIZER: _TEXT_INPUT, ENGINE: _IDS_INPUT}


@dataclass(frozen=True)
class Outcome:
    """How a request ended."""

    status: int
    """HTTP status; 0 when there was no answer at all."""
    message: str
    """Triton's error, or what went wrong on the way; empty for 200."""


def ask(url: str, path: str, inputs: list[dict[str, Any]] | None, timeout_s: float) -> Outcome:
    """POST an inference to `path`, or GET it without `inputs`."""
    try:
        with closing(HTTPConnection(url, timeout=timeout_s)) as connection:
            connection.request(*(("POST", path, json.dumps({"inputs": inputs})) if inputs else ("GET", path)))
            response = connection.getresponse()
            body = response.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        return Outcome(0, f"{type(error).__name__}: {error}")
    return Outcome(response.status, "" if response.status == 200 else body)


class Prober:
    """Asks one thing again and again."""

    def __init__(self, pool: ThreadPoolExecutor, request: Callable[[], Outcome]) -> None:
        self._pool, self._request = pool, request
        self._asked: Future[Outcome] | None = None
        self._asked_at = 0.0

    def ask(self, now: float) -> None:
        """Send the request, unless one is under way."""
        if self._asked is None:
            self._asked, self._asked_at = self._pool.submit(self._request), now

    def owed_s(self, now: float) -> float:
        """How long an answer has been owed; 0 when none is."""
        return now - self._asked_at if self._asked is not None and not self._asked.done() else 0.0

    def take(self) -> Outcome | None:
        """The answer, once."""
        if self._asked is None or not self._asked.done():
            return None
        outcome, self._asked = self._asked.result(), None
        return outcome


def inference(pool: ThreadPoolExecutor, url: str, model: str, version: int | None, timeout_s: float) -> Prober:
    """A prober that has `model` infer; of a step, with its version."""
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    return Prober(pool, lambda: ask(url, path, _INPUTS[model], timeout_s))


def health(pool: ThreadPoolExecutor, url: str, timeout_s: float) -> Prober:
    """A prober of the server's own health endpoint, which asks no model."""
    return Prober(pool, lambda: ask(url, "/v2/health/live", None, timeout_s))
