"""`clients.classifier` over a transport in memory: whole answers in order, or an error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from clients import BadRequest, Classifier, ClassifierError, Rejected, ServerError, TimedOut, Unavailable, connect
from clients.transport import GrpcTransport, HttpTransport, Transport
from tests.clients.memory import LABELS, RELEASE_ID, MemoryTransport, logits_of

COUNTS = {0: [], 1: [1], 64: [64], 65: [64, 1], 1000: [64] * 15 + [40]}


def texts_of(count: int) -> list[str]:
    return [f"text number {number} {'x' * (number % 13)}" for number in range(count)]


def fixed(*logits: float) -> Any:
    """A model that always answers the same."""
    return lambda text: list(logits)


@pytest.mark.parametrize("count", COUNTS)
def test_any_number_of_texts_is_sent_in_requests_of_64_and_joined_in_order(count: int) -> None:
    transport = MemoryTransport()
    texts = texts_of(count)
    predictions = Classifier(transport).classify(texts)
    assert [prediction.text for prediction in predictions] == texts
    assert [len(request) for request in transport.requests] == COUNTS[count]
    assert [text.decode() for request in transport.requests for text in request] == texts
    for prediction in predictions:
        logits = logits_of(prediction.text.encode())
        assert prediction.label == LABELS[int(np.argmax(logits))]
        assert prediction.truncated == (len(prediction.text) > 20)
        assert prediction.release == RELEASE_ID.decode()


@pytest.mark.parametrize("count", [1, 64, 65, 1000])
def test_raw_logits_are_joined_in_order(count: int) -> None:
    texts = texts_of(count)
    logits = Classifier(MemoryTransport()).logits(texts)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, np.array([logits_of(text.encode()) for text in texts], dtype=np.float32))


def test_raw_logits_of_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Classifier(MemoryTransport()).logits([])


def test_scores_are_the_softmax_in_the_order_of_the_logits() -> None:
    (prediction,) = Classifier(MemoryTransport(model=fixed(1.0, 3.0, 2.0))).classify(["a"])
    total = math.exp(1) + math.exp(3) + math.exp(2)
    assert list(prediction.scores) == list(LABELS)
    assert list(prediction.scores.values()) == pytest.approx([math.exp(logit) / total for logit in (1, 3, 2)])
    assert (prediction.label, prediction.score) == ("warm", prediction.scores["warm"])


def test_the_scores_of_every_prediction_sum_to_1() -> None:
    predictions = Classifier(MemoryTransport()).classify(texts_of(100))
    assert [math.fsum(prediction.scores.values()) for prediction in predictions] == pytest.approx([1.0] * 100, abs=1e-12)


def test_a_label_with_a_colon_stays_whole() -> None:
    (prediction,) = Classifier(MemoryTransport(model=fixed(0.0, 1.0, 2.0))).classify(["a"])
    assert prediction.label == "a:b"


@pytest.mark.parametrize("labels", [("x", "y", "z"), ("z", "y", "x")])
def test_of_tied_labels_the_first_wins_as_argmax_has_it(labels: tuple[str, ...]) -> None:
    transport = MemoryTransport(labels=labels, model=fixed(0.5, 1.5, 1.5))
    (prediction,) = Classifier(transport).classify(["a"])
    assert prediction.label == labels[1]
    assert prediction.scores[labels[1]] == prediction.scores[labels[2]]


@pytest.mark.parametrize("error", [Rejected("full"), TimedOut("late"), Unavailable("gone")])
@pytest.mark.parametrize("error_at", [0, 1, 2])
def test_when_one_request_fails_nothing_is_returned(error: ClassifierError, error_at: int) -> None:
    transport = MemoryTransport(error=error, error_at=error_at)
    with pytest.raises(type(error)) as raised:
        Classifier(transport).classify(texts_of(150))
    assert raised.value is error
    assert len(transport.requests) == error_at + 1  # and no further request is sent
    with pytest.raises(type(error)):
        Classifier(MemoryTransport(error=error, error_at=error_at)).logits(texts_of(150))


@pytest.mark.parametrize("extra_rows", [-1, 1])
def test_an_answer_with_another_number_of_rows_is_an_error(extra_rows: int) -> None:
    for call in (Classifier.classify, Classifier.logits):
        with pytest.raises(ServerError, match="2 texts were sent, and the answer has the shapes"):
            call(Classifier(MemoryTransport(extra_rows=extra_rows)), ["a", "b"])


def test_a_bad_text_is_refused_before_anything_is_sent() -> None:
    transport = MemoryTransport()
    with pytest.raises(BadRequest, match="text 70 is empty"):
        Classifier(transport).classify([*texts_of(70), " "])
    assert transport.requests == []


def test_a_classifier_that_is_not_loaded_is_unavailable_and_the_message_says_why() -> None:
    Classifier(MemoryTransport()).check_ready()
    with pytest.raises(Unavailable, match="bert_classifier is not ready: it is still loading, or no release is published"):
        Classifier(MemoryTransport(ready=False)).check_ready()


def test_leaving_the_block_closes_the_connection_even_after_an_error() -> None:
    transport = MemoryTransport(error=TimedOut("late"))
    with pytest.raises(TimedOut), Classifier(transport) as classifier:
        classifier.classify(["a"])
    assert transport.closed


def test_the_transport_in_memory_has_all_that_the_real_ones_have() -> None:
    for kind in (GrpcTransport, HttpTransport, MemoryTransport):
        assert {name for name in vars(Transport) if not name.startswith("_")} <= set(vars(kind))


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="protocol is 'rest'; use one of grpc, http"):
        connect("127.0.0.1:1", "rest")  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_timeout_that_is_not_above_0_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match=rf"timeout_s is {timeout_s}; it must be above 0"):
        connect("127.0.0.1:1", timeout_s=timeout_s)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_connecting_sends_nothing(protocol: Any) -> None:
    connect("127.0.0.1:1", protocol).close()
