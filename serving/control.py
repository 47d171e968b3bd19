"""The operator's calls to a running server: load a model, ask what is loaded. Clients have no such access."""

from __future__ import annotations

from http.client import HTTPException
from types import TracebackType
from typing import Any

import tritonclient.http
from tritonclient.utils import InferenceServerException

from contract.command import Failure
from serving.state import CONTROL_HEADER, ServerState

LOAD_TIMEOUT_S = 300.0


class ModelControl:
    """Model control over HTTP with the operator's token. A server that dies over a call is a `Failure` as well."""

    def __init__(self, state: ServerState) -> None:
        self._url = state.http_url
        self._headers = {CONTROL_HEADER: state.control_token}
        self._client: Any = tritonclient.http.InferenceServerClient(state.http_url, network_timeout=LOAD_TIMEOUT_S)

    def load(self, model: str) -> None:
        """Load `model` as the repository now describes it. Raises `Failure` with the server's reason.

        Success is not proof: Triton answers 200 as well when it saw nothing to do. Ask `is_ready`, or the model.
        """
        try:
            self._client.load_model(model, headers=self._headers)
        except (InferenceServerException, OSError, HTTPException) as error:
            raise Failure(f"the server at {self._url} could not load {model}: {error}") from error

    def is_ready(self, model: str, version: int) -> bool:
        """Whether that version of `model` is loaded."""
        try:
            return bool(self._client.is_model_ready(model, str(version)))
        except (InferenceServerException, OSError, HTTPException) as error:
            raise Failure(f"the server at {self._url} does not say whether {model} {version} is ready: {error}") from error

    def __enter__(self) -> ModelControl:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._client.close()
