"""One request to Triton over gRPC or over HTTP; everything else is the same for both (`clients.classifier`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from clients.errors import ClassifierError, TimedOut, Unavailable, from_status
from clients.payload import Texts
from contract.tensors import CLASSIFIER, LOGITS, RELEASE, TEXT, TRUNCATED

Answer = dict[str, npt.NDArray[Any]]
ProtocolName = Literal["grpc", "http"]

ALL_CLASSES = 100_000
"""Asked of the classification extension, which gives as many as there are."""

CONNECT_TIMEOUT_S = 5.0


class Transport(Protocol):
    """How a request reaches the server. Failures are raised as `clients.errors`."""

    def infer(self, texts: Texts, *, classes: bool) -> Answer:
        """Send [B, 1] texts; `logits` comes back as FP32 [B, C], or with `classes` as BYTES [B, C] with labels."""

    def ready(self) -> bool:
        """Whether the classifier is loaded."""

    def close(self) -> None:
        """Give the connection back."""


class GrpcTransport:
    """gRPC; one HTTP/2 connection, kept open."""

    def __init__(self, url: str, timeout_s: float, model: str = CLASSIFIER) -> None:
        self.url, self.timeout_s, self.model = url, timeout_s, model
        with _translated(url, timeout_s):
            self._client = tritonclient.grpc.InferenceServerClient(url)

    def infer(self, texts: Texts, *, classes: bool) -> Answer:
        """See `Transport.infer`."""
        requested = [
            tritonclient.grpc.InferRequestedOutput(LOGITS, class_count=ALL_CLASSES if classes else 0),
            *(tritonclient.grpc.InferRequestedOutput(name) for name in (TRUNCATED, RELEASE)),
        ]
        tensor = tritonclient.grpc.InferInput(TEXT, list(texts.shape), "BYTES").set_data_from_numpy(texts)
        with _translated(self.url, self.timeout_s):
            result = self._client.infer(self.model, [tensor], outputs=requested, client_timeout=self.timeout_s)
        return _arrays(result)

    def ready(self) -> bool:
        """See `Transport.ready`."""
        with _translated(self.url, self.timeout_s):
            return bool(self._client.is_model_ready(self.model, client_timeout=self.timeout_s))

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()
        # The library closes its channel once more when it is collected. Under gevent, so in Locust, that second closing
        # miscounts gRPC's channels and can hang the process as it ends.
        self._client.close = _already_closed


class HttpTransport:
    """HTTP with binary tensors; one keep-alive connection."""

    def __init__(self, url: str, timeout_s: float, model: str = CLASSIFIER) -> None:
        self.url, self.timeout_s, self.model = url, timeout_s, model
        with _translated(url, timeout_s):
            self._client = tritonclient.http.InferenceServerClient(
                url, connection_timeout=min(CONNECT_TIMEOUT_S, timeout_s), network_timeout=timeout_s
            )

    def infer(self, texts: Texts, *, classes: bool) -> Answer:
        """See `Transport.infer`."""
        requested = [
            tritonclient.http.InferRequestedOutput(LOGITS, class_count=ALL_CLASSES if classes else 0),
            *(tritonclient.http.InferRequestedOutput(name) for name in (TRUNCATED, RELEASE)),
        ]
        tensor = tritonclient.http.InferInput(TEXT, list(texts.shape), "BYTES").set_data_from_numpy(texts)
        with _translated(self.url, self.timeout_s):
            result = self._client.infer(self.model, [tensor], outputs=requested)
        return _arrays(result)

    def ready(self) -> bool:
        """See `Transport.ready`."""
        with _translated(self.url, self.timeout_s):
            return bool(self._client.is_model_ready(self.model))

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()


TRANSPORTS: dict[ProtocolName, type[GrpcTransport] | type[HttpTransport]] = {"grpc": GrpcTransport, "http": HttpTransport}


def _arrays(result: Any) -> Answer:
    return {name: np.asarray(result.as_numpy(name)) for name in (LOGITS, TRUNCATED, RELEASE)}


def _already_closed() -> None:
    """Takes the place of a client's `close` once it was called."""


@contextmanager
def _translated(url: str, timeout_s: float) -> Iterator[None]:
    """Raise the failures of both client libraries as `clients.errors`."""
    try:
        yield
    except ClassifierError:
        raise
    except InferenceServerException as error:
        if "Deadline Exceeded" in str(error):
            raise TimedOut(f"{url}: no answer within {timeout_s:g} s") from error
        raise from_status(str(error.status()), _message(error), url) from error
    except TimeoutError as error:
        raise TimedOut(f"{url}: no answer within {timeout_s:g} s") from error
    except (OSError, HTTPException, ValueError) as error:  # no connection, no HTTP, no JSON; or a url that is no host:port
        raise Unavailable(f"{url}: {error}; is the server running? python -m serving starts one") from error


def _message(error: InferenceServerException) -> str:
    message = str(error.message())
    if "failed to connect" in message or "Connection refused" in message:
        return f"{message}; is the server running? python -m serving starts one"
    return message
