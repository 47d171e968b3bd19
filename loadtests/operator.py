"""The operator's side of a running server: its counters, its models' configurations, and loading a model for a while.

Counters are open to everybody who reaches the metrics port; the rest needs the token in the served repository's
`.server.json`, which `python -m serving` writes and only its owner may read.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import Failure, UsageError
from contract.files import read_json

STATE_FILE = ".server.json"
CONTROL_HEADER = "triton-control"
TIMEOUT_S = 60.0

_COUNTER = re.compile(r'^nv_inference_(\w+)\{(?:[^}]*,)?model="([^"]+)"[^}]*\} (\S+)$', re.M)

Counters = dict[str, dict[str, float]]
"""By model, then by Triton's name without its prefix: request_success, exec_count, queue_duration_us ..."""


def gain(before: Counters, after: Counters, model: str, name: str) -> float:
    """By how much a counter of a model has grown; 0 where there is none."""
    return after.get(model, {}).get(name, 0.0) - before.get(model, {}).get(name, 0.0)


@dataclass(frozen=True)
class Operator:
    """Where a server listens and its operator's token."""

    grpc_url: str
    http_url: str
    metrics_url: str
    token: str
    pid: int
    """Of the supervising `python -m serving`."""

    def counters(self) -> Counters:
        """Triton's counters, of all versions of each model together. Raises `Failure` when the port does not answer."""
        found: Counters = {}
        for name, model, value in _COUNTER.findall(_fetch(f"http://{self.metrics_url}/metrics").decode()):
            counters = found.setdefault(model, {})
            counters[name] = counters.get(name, 0.0) + float(value)
        return found

    def config(self, model: str) -> dict[str, Any]:
        """The configuration that `model` is loaded with."""
        config: dict[str, Any] = json.loads(self._call(f"/v2/models/{model}/config"))
        return config

    @contextlib.contextmanager
    def loaded(self, model: str, config: dict[str, Any], source: Path) -> Iterator[None]:
        """Have the server load a python model out of `source` for as long as the block lasts; its repository is not touched."""
        code = base64.b64encode(source.read_bytes()).decode()
        body = {"parameters": {"config": json.dumps(config), "file:1/model.py": code}}
        self._call(f"/v2/repository/models/{model}/load", body)
        try:
            yield
        finally:
            self._call(f"/v2/repository/models/{model}/unload", {})

    def _call(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        return _fetch(f"http://{self.http_url}{path}", body=body, headers={CONTROL_HEADER: self.token})


def find_url(url: str | None, operator: Operator | None) -> str:
    """host:port of gRPC: the one that was named, else that of the operator's server, else Triton's own."""
    return url or (operator.grpc_url if operator else "127.0.0.1:8001")


def read_operator(repository: Path) -> Operator:
    """The server that serves `repository`. Raises UsageError when none does, or its token may not be read."""
    path = repository / STATE_FILE
    if not path.exists():
        raise UsageError(f"{repository} is not served: it has no {STATE_FILE}; python -m serving --repository {repository}")
    state = read_json(path)
    try:
        return Operator(state["grpc_url"], state["http_url"], state["metrics_url"], state["control_token"], state["pid"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} was not written by python -m serving: {error!r}") from error


def _fetch(url: str, *, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers or {})  # noqa: S310 - always http://
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            content: bytes = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            raise Failure(f"{url}: {error.code} {error.read().decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{url}: {error}; is the server running?") from error
    return content
