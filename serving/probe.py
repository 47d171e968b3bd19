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

from contract.tensors import ATTENTION_MASK, CANDIDATE, CLASSIFIER, ENGINE, FEATURES, INPUT_IDS, TEXT, TOKENIZER
from serving.state import CONTROL_HEADER, ServerState

PROBE_TEXT = "Which release is this?"
OK = 200
LOAD_TIMEOUT_S = 300.0

_TEXT_INPUT: list[dict[str, Any]] = [{"name": TEXT, "shape": [1, 1], "datatype": "BYTES", "data": [PROBE_TEXT]}]
_IDS_INPUT: list[dict[str, Any]] = [
    {"name": name, "shape": [1, 1], "datatype": "INT32", "data": [1]} for name in (INPUT_IDS, ATTENTION_MASK)
]
_INPUTS = {CLASSIFIER: _TEXT_INPUT, CANDIDATE: _TEXT_INPUT, TOKENIZER: _TEXT_INPUT, ENGINE: _IDS_INPUT}


@dataclass(frozen=True)
class Outcome:
    """How a request ended."""

    status: int
    """HTTP status; 0 when there was no answer at all."""
    body: str
    """What came: the answer as JSON, Triton's error, or what went wrong on the way."""

    @property
    def message(self) -> str:
        """The error; empty for an answer."""
        return "" if self.status == OK else self.body


def ask(url: str, path: str, body: dict[str, Any] | None, timeout_s: float, **headers: str) -> Outcome:
    """POST `body` to `path`, or GET it without one."""
    try:
        with closing(HTTPConnection(url, timeout=timeout_s)) as connection:
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        return Outcome(0, f"{type(error).__name__}: {error}")
    return Outcome(response.status, text)


def infer(url: str, model: str, version: int | None, timeout_s: float, *, features: int = 0) -> Outcome:
    """Have `model` answer one short text with so many zeros beside it; of a step, name the version."""
    path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
    beside = [{"name": FEATURES, "shape": [1, features], "datatype": "FP32", "data": [0.0] * features}] if features else []
    return ask(url, path, {"inputs": _INPUTS[model] + beside}, timeout_s)


def load(state: ServerState, model: str) -> Outcome:
    """Have the server load `model` as the repository now describes it."""
    return ask(
        state.http_url, f"/v2/repository/models/{model}/load", {}, LOAD_TIMEOUT_S, **{CONTROL_HEADER: state.control_token}
    )


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
