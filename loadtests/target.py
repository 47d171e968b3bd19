"""A served classifier as the target of a generator: gRPC on asyncio, its requests serialised before the test begins."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import grpc

from clients.errors import from_status
from clients.prepared import INFER_METHOD, release_in, request_bytes
from contract.tensors import CLASSIFIER
from loadtests.record import Requests


class GrpcTarget:
    """Sends requests that were made beforehand; an async context manager. `send` is a `loadtests.record.Send`."""

    def __init__(self, url: str, requests: Requests, *, model: str = CLASSIFIER, timeout_s: float) -> None:
        """Serialise every request. Raises BadRequest for texts that cannot be classified."""
        self._url, self._timeout_s = url, timeout_s
        self._bytes = {tuple(texts): request_bytes(texts, model=model) for texts in requests}

    async def __aenter__(self) -> GrpcTarget:
        self._channel = grpc.aio.insecure_channel(self._url)
        self._call = self._channel.unary_unary(INFER_METHOD)  # bytes in, bytes out
        return self

    async def send(self, texts: Sequence[str]) -> str:
        """Send one of the requests; the release that answered. Raises ClassifierError, for a wrong answer too."""
        try:
            answer = await self._call(self._bytes[tuple(texts)], timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_status(str(error.code()), error.details() or "", self._url) from error
        return release_in(answer, len(texts))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()
