"""The client: texts in, predictions out, over any transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt

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
from clients.transport import TRANSPORTS, Answer, ProtocolName, Transport
from clients.wire import DEFAULT_TIMEOUT_S
from contract.tensors import CLASSIFIER, LOGITS

__all__ = ["DEFAULT_TIMEOUT_S", "Classifier", "Prediction", "connect"]


class Classifier:
    """A served classifier. Close it, or use it as a context manager; not shared between threads."""

    def __init__(
        self,
        transport: Transport,
        *,
        model: str = CLASSIFIER,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport, self._model, self._timeout_s, self._sleep = transport, model, timeout_s, sleep
        self._policy = retry or NO_RETRIES
        self._budget = Budget(self._policy.budget)
        self._names: list[str] = []

    def classify(
        self,
        texts: Sequence[str],
        *,
        features: Sequence[Features] | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> list[Prediction]:
        """One prediction a text, in order. Any number of texts: they travel in requests of the server's limit.

        Args:
            texts: what to classify.
            features: where the release reads numbers beside the text, those of each text: in its order, or by name.
            timeout_s: deadline of the whole call, all requests and retries; None: that of the connection.
            request_id: id of the requests, in the server's log and in errors; several requests get "/0", "/1", ... added.
                "": a new random one.

        Raises:
            ClassifierError: one request failed; nothing is returned, so no batch is half-answered in silence.
        """
        found: list[Prediction] = []
        for batch, answer in self._answers(texts, features, timeout_s, request_id, classes=True):
            found += predictions(texts[batch], answer)
        return found

    def logits(
        self,
        texts: Sequence[str],
        *,
        features: Sequence[Features] | None = None,
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> npt.NDArray[np.float32]:
        """The raw logits [texts, C]. Takes and raises what `classify` does, and ValueError for no texts."""
        answers = self._answers(texts, features, timeout_s, request_id, classes=False)
        return np.concatenate([answer[LOGITS] for _, answer in answers])

    def feature_names(self, *, timeout_s: float | None = None) -> list[str]:
        """Names of the numbers that the release reads beside each text, in its order; empty where it reads text alone.

        Asked of the server, by a text without numbers, until they are known. Raises what `classify` does.
        """
        if not self._names:
            try:
                self.classify([ASKING], timeout_s=timeout_s)
            except BadRequest as error:
                self._names = names_wanted(error)
        return list(self._names)

    def _answers(
        self,
        texts: Sequence[str],
        features: Sequence[Features] | None,
        timeout_s: float | None,
        request_id: str,
        *,
        classes: bool,
    ) -> Iterator[tuple[slice, Answer]]:
        """The requests that the texts travel in, one after the other."""
        deadline = Deadline(self._timeout_s if timeout_s is None else timeout_s)
        encoded = encode_texts(texts)
        names = self.feature_names(timeout_s=deadline.remaining_s()) if by_name(features) else ()
        numbers = None if features is None else encode_features(features, len(texts), names)
        batches = list(batch_slices(len(encoded)))
        for batch, name in zip(batches, request_ids(len(batches), request_id), strict=True):
            beside = None if numbers is None else numbers[batch]
            yield batch, self._answer(encoded[batch], beside, deadline, name, classes=classes)

    def _answer(self, texts: Texts, features: Numbers | None, deadline: Deadline, request_id: str, *, classes: bool) -> Answer:
        """One request, sent until it is answered or given up."""
        attempts = Attempts(self._policy, self._budget, deadline)
        while True:
            try:
                left_s = deadline.remaining_s()
                answer = self._transport.infer(
                    texts, classes=classes, timeout_s=left_s, request_id=request_id, features=features
                )
                attempts.succeeded()
                return checked(answer, texts)
            except ClassifierError as error:
                error.request_id = request_id
                wait_s = attempts.wait_s(error)
            self._sleep(wait_s)

    def check_ready(self) -> None:
        """Raise `Unavailable` unless the classifier is loaded and a server answers."""
        if not self._transport.ready():
            raise not_ready(self._model)

    def close(self) -> None:
        """Give the connection back."""
        self._transport.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def connect(
    url: str,
    protocol: ProtocolName = "grpc",
    *,
    model: str = CLASSIFIER,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry: RetryPolicy | None = None,
    tls: Tls | None = None,
) -> Classifier:
    """A client of the server at `url` ("host:port"; Triton listens on 8001 for gRPC, on 8000 for HTTP).

    Nothing is sent yet. `clients.connect_async` is the same for asyncio.

    Args:
        url: where the server, or a proxy before it, listens.
        protocol: "grpc" or "http".
        model: which of the server's classifiers is asked.
        timeout_s: deadline of a call, with all its requests and retries, in seconds.
        retry: how failed requests are sent again, `RetryPolicy()` for good defaults; None: never.
        tls: encrypts the connection; None: it is plain.

    Raises:
        ValueError: an unknown protocol, or a time-out that is not above 0.
    """
    check_connection(protocol, timeout_s)
    transport = TRANSPORTS[protocol](url, timeout_s, model=model, tls=tls)
    return Classifier(transport, model=model, timeout_s=timeout_s, retry=retry)


def check_connection(protocol: str, timeout_s: float) -> None:
    """Raise ValueError for what neither `connect` nor `connect_async` can work with."""
    if protocol not in TRANSPORTS:
        raise ValueError(f"protocol is {protocol!r}; use one of {', '.join(TRANSPORTS)}")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s is {timeout_s}; it must be above 0")
