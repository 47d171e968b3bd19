"""What a caller gets for a text, and how it is read out of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clients.errors import ServerError, Unavailable
from clients.payload import Texts, parse_classes, softmax
from clients.wire import Answer
from contract.tensors import LOGITS, RELEASE, TRUNCATED


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


def checked(answer: Answer, texts: Texts) -> Answer:
    """The answer itself; one that has not one row a text is a `ServerError`."""
    wrong = {name: array.shape for name, array in answer.items() if array.shape[:1] != (len(texts),)}
    if wrong:
        raise ServerError(f"{len(texts)} texts were sent, and the answer has the shapes {wrong}")
    return answer


def predictions(texts: Sequence[str], answer: Answer) -> Iterator[Prediction]:
    """Row by row."""
    for text, classes, truncated, release in zip(texts, answer[LOGITS], answer[TRUNCATED], answer[RELEASE], strict=True):
        logits = parse_classes(classes)
        scores = dict(zip(logits, softmax(list(logits.values())), strict=True))
        label = max(scores, key=scores.__getitem__)
        yield Prediction(text, label, scores[label], scores, release[0].decode(), bool(truncated[0]))


def not_ready(model: str) -> Unavailable:
    """The error of a server that answers, but not with this model."""
    return Unavailable(f"the server is up, but {model} is not ready: it is still loading, or no release is published")
