"""What the four transports (gRPC and HTTP, sync and asyncio) have in common: the tensors of a request and the failures."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from clients.errors import ClassifierError, TimedOut, Unavailable, from_status, untrusted
from clients.payload import Numbers, Texts
from contract.tensors import FEATURES, LOGITS, RELEASE, TEXT, TRUNCATED

Answer = dict[str, npt.NDArray[Any]]
ProtocolName = Literal["grpc", "http"]

DEFAULT_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0

ALL_CLASSES = 100_000
"""Asked of the classification extension, which gives as many as there are."""

GRPC_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Left alone, gRPC looks for a restarted server after 1 s, then ever more rarely, up to every 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT_S * 1000)),
]

_HINT = "is the server running? python -m serving starts one"


def request_of(
    library: ModuleType, texts: Texts, *, classes: bool, request_id: str, features: Numbers | None = None
) -> dict[str, Any]:
    """Arguments of `infer` of a client of `library`, tritonclient.grpc or tritonclient.http: [B, 1] texts, all outputs."""
    requested = [
        library.InferRequestedOutput(LOGITS, class_count=ALL_CLASSES if classes else 0),
        *(library.InferRequestedOutput(name) for name in (TRUNCATED, RELEASE)),
    ]
    tensors = [library.InferInput(TEXT, list(texts.shape), "BYTES").set_data_from_numpy(texts)]
    if features is not None:
        tensors.append(library.InferInput(FEATURES, list(features.shape), "FP32").set_data_from_numpy(features))
    return {"inputs": tensors, "outputs": requested, "request_id": request_id}


def arrays_of(result: Any) -> Answer:
    """The outputs of either library's result."""
    return {name: np.asarray(result.as_numpy(name)) for name in (LOGITS, TRUNCATED, RELEASE)}


@contextmanager
def translated(url: str, timeout_s: float, *lost: type[Exception]) -> Iterator[None]:
    """Raise the failures of all client libraries as `clients.errors`; `lost` are further errors of a lost connection."""
    # No connection, no HTTP, no JSON; or a url that is no host:port.
    unavailable: tuple[type[Exception], ...] = (OSError, HTTPException, ValueError, *lost)
    try:
        yield
    except ClassifierError:
        raise
    except InferenceServerException as error:
        if "Deadline Exceeded" in str(error):
            raise late(url, timeout_s) from error
        raise from_status(str(error.status()), _message(error), url) from error
    except TimeoutError as error:
        raise late(url, timeout_s) from error
    except ssl.SSLError as error:
        raise untrusted(url, error) from error
    except unavailable as error:
        raise Unavailable(f"{url}: {str(error) or type(error).__name__}; {_HINT}") from error


def late(url: str, timeout_s: float) -> TimedOut:
    """The error of a deadline that passed."""
    return TimedOut(f"{url}: no answer within {timeout_s:.3g} s")


def _message(error: InferenceServerException) -> str:
    message = str(error.message())
    refused = "failed to connect" in message or "Connection refused" in message
    return f"{message}; {_HINT}" if refused else message
