"""A served classifier as a target: gRPC on asyncio, or a caller who waits; requests are serialised before the test."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import grpc

from clients.errors import Unavailable, from_status
from clients.prepared import INFER_METHOD, INFER_PATH, release_in, release_in_json, request_bytes, request_json
from contract.features import wanted_in
from contract.tensors import CLASSIFIER
from loadtests.record import Requests


class GrpcTarget:
    """Sends requests that were made beforehand; an async context manager. `send` is a `loadtests.record.Send`.

    Where the release reads numbers beside the text, the first refusal says how many, and zeros are sent from then on.
    """

    def __init__(self, url: str, requests: Requests, *, model: str = CLASSIFIER, timeout_s: float) -> None:
        """Serialise every request. Raises BadRequest for texts that cannot be classified."""
        self._url, self._timeout_s, self._model, self._features = url, timeout_s, model, 0
        self._prepare(requests)

    def _prepare(self, requests: Requests) -> None:
        self._bytes = {tuple(texts): request_bytes(texts, model=self._model, features=self._features) for texts in requests}

    async def __aenter__(self) -> GrpcTarget:
        self._channel = grpc.aio.insecure_channel(self._url)
        self._call = self._channel.unary_unary(INFER_METHOD)  # bytes in, bytes out
        return self

    async def send(self, texts: Sequence[str]) -> str:
        """Send one of the requests; the release that answered. Raises ClassifierError, for a wrong answer too."""
        features = self._features
        try:
            answer = await self._call(self._bytes[tuple(texts)], timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if not features and (names := wanted_in(error.details() or "")):
                if not self._features:  # another request may have learned it meanwhile
                    self._features = len(names)
                    self._prepare(list(self._bytes))
                return await self.send(texts)
            raise from_status(str(error.code()), error.details() or "", self._url) from error
        return release_in(answer, len(texts))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()


@contextmanager
def waiting(url: str, requests: Requests, *, timeout_s: float) -> Iterator[Callable[[Sequence[str]], str]]:
    """`GrpcTarget.send` of a caller who waits for each answer: without an event loop, which costs a request 0.3 ms."""
    prepared = {tuple(texts): request_bytes(texts) for texts in requests}
    with grpc.insecure_channel(url) as channel:
        call = channel.unary_unary(INFER_METHOD)  # bytes in, bytes out

        def send(texts: Sequence[str]) -> str:
            try:
                answer = call(prepared[tuple(texts)], timeout=timeout_s)
            except grpc.RpcError as error:
                raise from_status(str(error.code()), error.details() or "", url) from error
            return release_in(answer, len(texts))

        yield send


@contextmanager
def waiting_http(url: str, requests: Requests, *, timeout_s: float) -> Iterator[Callable[[Sequence[str]], str]]:
    """As `waiting`, in JSON over HTTP on one kept connection, by the standard library."""
    prepared = {tuple(texts): request_json(texts) for texts in requests}
    connection = http.client.HTTPConnection(url, timeout=timeout_s)

    def send(texts: Sequence[str]) -> str:
        try:
            connection.request("POST", INFER_PATH, prepared[tuple(texts)])
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unavailable(f"{url}: {error!r}") from error
        if response.status != http.client.OK:
            raise from_status(str(response.status), answer.decode(errors="replace"), url)
        return release_in_json(answer, len(texts))

    try:
        yield send
    finally:
        connection.close()
