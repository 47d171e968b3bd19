"""One request to Triton from asyncio, over gRPC or over HTTP: `clients.transport` for coroutines.

A cancelled call is cancelled on the wire too: gRPC resets its stream, HTTP closes its connection.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol

import aiohttp
import tritonclient.grpc.aio
import tritonclient.http.aio

from clients.payload import Numbers, Texts
from clients.tls import Tls
from clients.wire import GRPC_OPTIONS, Answer, ProtocolName, arrays_of, request_of, translated
from contract.tensors import CLASSIFIER


class AsyncTransport(Protocol):
    """How a request reaches the server; many may be under way at once. Failures are raised as `clients.errors`."""

    async def infer(
        self, texts: Texts, *, classes: bool, timeout_s: float, request_id: str = "", features: Numbers | None = None
    ) -> Answer:
        """As `clients.transport.Transport.infer`."""

    async def ready(self) -> bool:
        """Whether the classifier is loaded."""

    async def close(self) -> None:
        """Give the connections back."""


class AsyncGrpcTransport:
    """gRPC; all requests share one HTTP/2 connection."""

    def __init__(self, url: str, timeout_s: float, *, in_flight: int, model: str = CLASSIFIER, tls: Tls | None = None) -> None:
        self.url, self.timeout_s, self.model = url, timeout_s, model
        options = {} if tls is None else tls.grpc_options()
        with translated(url, timeout_s):
            self._client = tritonclient.grpc.aio.InferenceServerClient(url, channel_args=GRPC_OPTIONS, **options)

    async def infer(
        self, texts: Texts, *, classes: bool, timeout_s: float, request_id: str = "", features: Numbers | None = None
    ) -> Answer:
        """See `AsyncTransport.infer`."""
        request = request_of(tritonclient.grpc, texts, classes=classes, request_id=request_id, features=features)
        with translated(self.url, timeout_s):
            return arrays_of(await self._client.infer(self.model, client_timeout=timeout_s, **request))

    async def ready(self) -> bool:
        """See `AsyncTransport.ready`."""
        with translated(self.url, self.timeout_s):
            return bool(await self._client.is_model_ready(self.model, client_timeout=self.timeout_s))

    async def close(self) -> None:
        """See `AsyncTransport.close`."""
        await self._client.close()


class AsyncHttpTransport:
    """HTTP with binary tensors; as many keep-alive connections as there may be requests in flight."""

    def __init__(self, url: str, timeout_s: float, *, in_flight: int, model: str = CLASSIFIER, tls: Tls | None = None) -> None:
        self.url, self.timeout_s, self.model = url, timeout_s, model
        options: dict[str, Any] = {"conn_limit": in_flight, "conn_timeout": None}
        if tls is not None:
            options |= {"ssl": True, "ssl_context": tls.context(ssl.create_default_context)}
        with translated(url, timeout_s):
            self._client = tritonclient.http.aio.InferenceServerClient(url, **options)

    async def infer(
        self, texts: Texts, *, classes: bool, timeout_s: float, request_id: str = "", features: Numbers | None = None
    ) -> Answer:
        """See `AsyncTransport.infer`."""
        request = request_of(tritonclient.http, texts, classes=classes, request_id=request_id, features=features)
        with translated(self.url, timeout_s, aiohttp.ClientError):
            async with asyncio.timeout(timeout_s):
                return arrays_of(await self._client.infer(self.model, **request))

    async def ready(self) -> bool:
        """See `AsyncTransport.ready`."""
        with translated(self.url, self.timeout_s, aiohttp.ClientError):
            async with asyncio.timeout(self.timeout_s):
                return bool(await self._client.is_model_ready(self.model))

    async def close(self) -> None:
        """See `AsyncTransport.close`."""
        await self._client.close()


ASYNC_TRANSPORTS: dict[ProtocolName, type[AsyncGrpcTransport] | type[AsyncHttpTransport]] = {
    "grpc": AsyncGrpcTransport,
    "http": AsyncHttpTransport,
}
