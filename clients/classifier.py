"""The client: texts in, predictions out, over any transport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from clients.errors import ServerError, Unavailable
from clients.payload import Texts, batch_slices, encode_texts, parse_classes, softmax
from clients.transport import TRANSPORTS, Answer, ProtocolName, Transport
from contract.tensors import CLASSIFIER, LOGITS, RELEASE, TRUNCATED

DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Prediction:
    """The answer to one text."""

    text: str
    label: str
    score: float
    """Probability of `label`, the softmax of the logits."""
    scores: dict[str, float]
    """Probability of every label, in the order of the logits."""
    release: str
    """Id of the release that answered."""
    truncated: bool
    """The text was longer than the model reads, and its end was not looked at."""


class Classifier:
    """A served classifier. Close it, or use it as a context manager; not shared between threads."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def classify(self, texts: Sequence[str]) -> list[Prediction]:
        """One prediction a text, in order. Any number of texts: they travel in requests of the server's limit.

        Raises:
            ClassifierError: one request failed; nothing is returned, so no batch is half-answered in silence.
        """
        encoded = encode_texts(texts)
        predictions: list[Prediction] = []
        for batch in batch_slices(len(texts)):
            predictions += _predictions(texts[batch], self._infer(encoded[batch], classes=True))
        return predictions

    def logits(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The raw logits [texts, C]. Raises as `classify` does, and ValueError for no texts."""
        encoded = encode_texts(texts)
        batches = batch_slices(len(texts))
        return np.concatenate([self._infer(encoded[batch], classes=False)[LOGITS] for batch in batches])

    def _infer(self, texts: Texts, *, classes: bool) -> Answer:
        """One request; an answer that has not one row a text is a `ServerError`."""
        answer = self._transport.infer(texts, classes=classes)
        wrong = {name: array.shape for name, array in answer.items() if array.shape[:1] != (len(texts),)}
        if wrong:
            raise ServerError(f"{len(texts)} texts were sent, and the answer has the shapes {wrong}")
        return answer

    def check_ready(self) -> None:
        """Raise `Unavailable` unless the classifier is loaded and a server answers."""
        if not self._transport.ready():
            raise Unavailable(
                f"the server is up, but {CLASSIFIER} is not ready: it is still loading, or no release is published"
            )

    def close(self) -> None:
        """Give the connection back."""
        self._transport.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def connect(
    url: str, protocol: ProtocolName = "grpc", *, timeout_s: float = DEFAULT_TIMEOUT_S, model: str = CLASSIFIER
) -> Classifier:
    """A client of the server at `url` ("host:port"; Triton listens on 8001 for gRPC, on 8000 for HTTP).

    `model` is the ensemble that is asked. Nothing is sent yet. Raises ValueError for an unknown protocol or a time-out that is not above 0.
    """
    if protocol not in TRANSPORTS:
        raise ValueError(f"protocol is {protocol!r}; use one of {', '.join(TRANSPORTS)}")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s is {timeout_s}; it must be above 0")
    return Classifier(TRANSPORTS[protocol](url, timeout_s, model))


def _predictions(texts: Sequence[str], answer: Answer) -> Iterator[Prediction]:
    """Row by row."""
    for text, classes, truncated, release in zip(texts, answer[LOGITS], answer[TRUNCATED], answer[RELEASE], strict=True):
        logits = parse_classes(classes)
        scores = dict(zip(logits, softmax(list(logits.values())), strict=True))
        label = max(scores, key=scores.__getitem__)
        yield Prediction(text, label, scores[label], scores, release[0].decode(), bool(truncated[0]))
