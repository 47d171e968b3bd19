"""One request to Triton over gRPC or over HTTP; everything else is the same for both (`clients.classifier`)."""

from __future__ import annotations

from typing import Any, Protocol

import gevent
import gevent.ssl
import tritonclient.grpc
import tritonclient.http

from clients.errors import Unavailable
from clients.payload import Numbers, Texts
from clients.tls import Tls
from clients.wire import CONNECT_TIMEOUT_S, GRPC_OPTIONS, Answer, ProtocolName, arrays_of, late, request_of, translated
from contract.tensors import CLASSIFIER

__all__ = ["TRANSPORTS", "Answer", "GrpcTransport", "HttpTransport", "ProtocolName", "Transport"]


class Transport(Protocol):
    """How a request reaches the server. Failures are raised as `clients.errors`."""

    def infer(
        self,
        texts: Texts,
        *,
        classes: bool,
        timeout_s: float | None = None,
        request_id: str = "",
        features: Numbers | None = None,
    ) -> Answer:
        """Send [B, 1] texts; `logits` comes back as FP32 [B, C], or with `classes` as BYTES [B, C] with labels.

        `features` [B, F] go along where the release reads them.
        `timeout_s` bounds the whole exchange; None: what the transport was made with.
        """

    def ready(self) -> bool:
        """Whether the classifier is loaded."""

    def close(self) -> None:
        """Give the connection back."""


class GrpcTransport:
    """gRPC; one HTTP/2 connection, kept open and opened again when it is lost."""

    def __init__(self, url: str, timeout_s: float, *, model: str = CLASSIFIER, tls: Tls | None = None) -> None:
        self.url, self.timeout_s, self.model = url, timeout_s, model
        options = {} if tls is None else tls.grpc_options()
        with translated(url, timeout_s):
            self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=GRPC_OPTIONS, **options)

    def infer(
        self,
        texts: Texts,
        *,
        classes: bool,
        timeout_s: float | None = None,
        request_id: str = "",
        features: Numbers | None = None,
    ) -> Answer:
        """See `Transport.infer`."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        request = request_of(tritonclient.grpc, texts, classes=classes, request_id=request_id, features=features)
        with translated(self.url, timeout_s):
            return arrays_of(self._client.infer(self.model, client_timeout=timeout_s, **request))

    def ready(self) -> bool:
        """See `Transport.ready`."""
        with translated(self.url, self.timeout_s):
            return bool(self._client.is_model_ready(self.model, client_timeout=self.timeout_s))

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()
        # The library closes its channel once more when it is collected. Under gevent, so in Locust, that second closing
        # miscounts gRPC's channels and can hang the process as it ends.
        self._client.close = _already_closed


class HttpTransport:
    """HTTP with binary tensors; one keep-alive connection."""

    def __init__(self, url: str, timeout_s: float, *, model: str = CLASSIFIER, tls: Tls | None = None) -> None:
        self.url, self.timeout_s, self.model = url, timeout_s, model
        self._options: dict[str, Any] = {"connection_timeout": min(CONNECT_TIMEOUT_S, timeout_s), "network_timeout": None}
        if tls is not None:
            self._options |= {"ssl": True, "ssl_context_factory": lambda: tls.context(gevent.ssl.create_default_context)}
        self._client = self._open()

    def _open(self) -> Any:
        with translated(self.url, self.timeout_s):
            return tritonclient.http.InferenceServerClient(self.url, **self._options)

    def infer(
        self,
        texts: Texts,
        *,
        classes: bool,
        timeout_s: float | None = None,
        request_id: str = "",
        features: Numbers | None = None,
    ) -> Answer:
        """See `Transport.infer`."""
        request = request_of(tritonclient.http, texts, classes=classes, request_id=request_id, features=features)
        return arrays_of(self._within(timeout_s, lambda: self._client.infer(self.model, **request)))

    def ready(self) -> bool:
        """See `Transport.ready`."""
        return bool(self._within(None, lambda: self._client.is_model_ready(self.model)))

    def _within(self, timeout_s: float | None, call: Any) -> Any:
        """The library's own time-outs are per read of the socket; this one is for all of `call`, whatever trickles in."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        with translated(self.url, timeout_s), gevent.Timeout(timeout_s) as limit:
            try:
                return call()
            except gevent.Timeout as fired:
                if fired is not limit:
                    raise
                self._client.close()  # its connection may hold half an answer
                self._client = self._open()
                raise late(self.url, timeout_s) from None
            except TimeoutError as error:  # the connection's own limit: reading has none
                raise Unavailable(f"{self.url}: no connection within {self._options['connection_timeout']:g} s") from error

    def close(self) -> None:
        """See `Transport.close`."""
        self._client.close()


TRANSPORTS: dict[ProtocolName, type[GrpcTransport] | type[HttpTransport]] = {"grpc": GrpcTransport, "http": HttpTransport}


def _already_closed() -> None:
    """Takes the place of a client's `close` once it was called."""
