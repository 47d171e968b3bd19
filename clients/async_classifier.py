"""The client for asyncio: `clients.classifier` with many requests under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clients.classifier import check_connection
from clients.errors import BadRequest, ClassifierError
from clients.payload import (
    ASKING,
    Features,
    Numbers,
    Texts,
    batch_slices,
    by_name,
    encode_features,
    encode_texts,
    names_wanted,
    request_ids,
)
from clients.prediction import Prediction, checked, not_ready, predictions
from clients.retry import NO_RETRIES, Attempts, Budget, Deadline, RetryPolicy
from clients.tls import Tls
from clients.wire import DEFAULT_TIMEOUT_S, Answer, ProtocolName
from contract.tensors import CLASSIFIER, LOGITS

if TYPE_CHECKING:
    from clients.async_transport import AsyncTransport

DEFAULT_IN_FLIGHT = 8


class AsyncClassifier:
    """A served classifier, for one event loop; any number of calls may run at once. Close it, or use `async with`."""

    def __init__(
        self,
        transport: AsyncTransport,
        *,
        model: str = CLASSIFIER,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        in_flight: int = DEFAULT_IN_FLIGHT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._transport, self._model, self._timeout_s, self._sleep = transport, model, timeout_s, sleep
        self._policy = retry or NO_RETRIES
        self._budget = Budget(self._policy.budget * in_flight)
        self._in_flight, self._slots = in_flight, asyncio.Semaphore(in_flight)
        self._names: list[str] = []

    async def classify(
        self,
        texts: Sequence[str],
        *,
        features: Sequence[Features] | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[Prediction]:
        """See `Classifier.classify`. When it fails or is cancelled, every request of it is cancelled first."""
        answers = await self._answers(texts, features, timeout_s, request_id, classes=True)
        return [row for batch, answer in answers for row in predictions(texts[batch], answer)]

    async def logits(
        self,
        texts: Sequence[str],
        *,
        features: Sequence[Features] | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> npt.NDArray[np.float32]:
        """See `Classifier.logits`; fails and is cancelled as `classify` is."""
        answers = await self._answers(texts, features, timeout_s, request_id, classes=False)
        return np.concatenate([answer[LOGITS] for _, answer in answers])

    async def feature_names(self, *, timeout_s: float | None = None) -> list[str]:
        """See `Classifier.feature_names`."""
        if not self._names:
            try:
                await self.classify([ASKING], timeout_s=timeout_s)
            except BadRequest as error:
                self._names = names_wanted(error)
        return list(self._names)

    async def _answers(
        self,
        texts: Sequence[str],
        features: Sequence[Features] | None,
        timeout_s: float | None,
        request_id: str,
        *,
        classes: bool,
    ) -> list[tuple[slice, Answer]]:
        """All requests that the texts travel in, in order, `in_flight` of them at a time."""
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        encoded = encode_texts(texts)
        names = await self.feature_names(timeout_s=deadline.remaining_s()) if by_name(features) else ()
        numbers = None if features is None else encode_features(features, len(texts), names)
        batches = list(batch_slices(len(encoded)))
        waiting = iter([*enumerate(zip(batches, request_ids(len(batches), request_id), strict=True))])
        answers: dict[int, Answer] = {}

        async def work() -> None:
            for number, (batch, name) in waiting:
                beside = None if numbers is None else numbers[batch]
                answers[number] = await self._answer(encoded[batch], beside, deadline, name, classes=classes)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._in_flight, len(batches))):
                    group.create_task(work())
        except ExceptionGroup as failures:  # the first one is why the others were cancelled
            raise failures.exceptions[0] from None
        return [(batch, answers[number]) for number, batch in enumerate(batches)]

    async def _answer(
        self, texts: Texts, features: Numbers | None, deadline: Deadline, request_id: str, *, classes: bool
    ) -> Answer:
        """One request, sent until it is answered or given up."""
        attempts = Attempts(self._policy, self._budget, deadline)
        while True:
            try:
                async with self._slot(deadline):
                    left_s = deadline.remaining_s()
                    answer = await self._transport.infer(
                        texts, classes=classes, timeout_s=left_s, request_id=request_id, features=features
                    )
                attempts.succeeded()
                return checked(answer, texts)
            except ClassifierError as error:
                error.request_id = request_id
                wait_s = attempts.wait_s(error)
            await self._sleep(wait_s)

    @asynccontextmanager
    async def _slot(self, deadline: Deadline) -> AsyncIterator[None]:
        """One of the requests that may be under way at once; raises `TimedOut` when none comes free in time."""
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                await self._slots.acquire()
        except TimeoutError as error:
            raise deadline.over() from error
        try:
            yield
        finally:
            self._slots.release()

    async def check_ready(self) -> None:
        """See `Classifier.check_ready`."""
        if not await self._transport.ready():
            raise not_ready(self._model)

    async def close(self) -> None:
        """Give the connections back."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClassifier:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def connect_async(
    url: str,
    protocol: ProtocolName = "grpc",
    *,
    model: str = CLASSIFIER,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry: RetryPolicy | None = None,
    tls: Tls | None = None,
    in_flight: int = DEFAULT_IN_FLIGHT,
) -> AsyncClassifier:
    """As `clients.connect`, to be called inside a running event loop.

    `in_flight` bounds the requests under way at once, over all calls of the classifier. Raises ValueError as `connect` does.
    """
    from clients.async_transport import ASYNC_TRANSPORTS  # aiohttp takes half a second to import

    check_connection(protocol, timeout_s)
    if in_flight < 1:
        raise ValueError(f"in_flight is {in_flight}; at least 1 is needed")
    transport = ASYNC_TRANSPORTS[protocol](url, timeout_s, in_flight=in_flight, model=model, tls=tls)
    return AsyncClassifier(transport, model=model, timeout_s=timeout_s, retry=retry, in_flight=in_flight)
