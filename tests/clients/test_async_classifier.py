"""`clients.async_classifier` over a transport in memory: as the sync one, and many at once, bounded and cancellable."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest

from clients import (
    AsyncClassifier,
    BadRequest,
    Classifier,
    ClassifierError,
    Rejected,
    RetryPolicy,
    ServerError,
    TimedOut,
    Unavailable,
    connect_async,
)
from clients.async_transport import AsyncGrpcTransport, AsyncHttpTransport, AsyncTransport
from tests.clients.async_memory import AsyncMemoryTransport
from tests.clients.memory import MemoryTransport, logits_of
from tests.clients.test_classifier import texts_of


async def no_wait(seconds: float) -> None:
    """A sleep that takes no time."""
    await asyncio.sleep(0)


async def running_besides_me() -> int:
    """Tasks that were left behind."""
    return len(asyncio.all_tasks() - {asyncio.current_task()})


@pytest.mark.parametrize("count", [0, 1, 64, 65, 1000])
def test_it_answers_what_the_sync_classifier_answers(count: int) -> None:
    async def main() -> None:
        classifier = AsyncClassifier(AsyncMemoryTransport(turns=3))
        assert await classifier.classify(texts_of(count)) == Classifier(MemoryTransport()).classify(texts_of(count))
        if count:
            expected = np.array([logits_of(text.encode()) for text in texts_of(count)], dtype=np.float32)
            np.testing.assert_array_equal(await classifier.logits(texts_of(count)), expected)

    asyncio.run(main())


def test_answers_that_come_in_another_order_are_joined_in_order() -> None:
    class Backwards(AsyncMemoryTransport):
        """The first request is the last to be answered."""

        async def infer(self, texts: Any, **options: Any) -> Any:
            self.turns = 40 - 10 * (len(self.inner.requests) + self.running)
            return await super().infer(texts, **options)

    async def main() -> None:
        transport = Backwards()
        predictions = await AsyncClassifier(transport, in_flight=4).classify(texts_of(256))
        assert [prediction.text for prediction in predictions] == texts_of(256)
        assert transport.inner.requests[0][0].decode() != texts_of(256)[0]

    asyncio.run(main())


@pytest.mark.parametrize("calls", [1, 5])
def test_requests_in_flight_are_bounded_over_all_calls(calls: int) -> None:
    async def main() -> None:
        transport = AsyncMemoryTransport(turns=5)
        classifier = AsyncClassifier(transport, in_flight=3)
        await asyncio.gather(*(classifier.classify(texts_of(640)) for _ in range(calls)))
        assert transport.most_running == 3
        assert len(transport.inner.requests) == calls * 10

    asyncio.run(main())


@pytest.mark.parametrize("error", [Rejected("full"), TimedOut("late"), ServerError("broke")])
def test_when_one_request_fails_the_others_are_cancelled_and_its_own_error_comes(error: ClassifierError) -> None:
    async def main() -> None:
        transport = AsyncMemoryTransport(error=error, error_at=2, turns=2)
        with pytest.raises(type(error)) as raised:
            await AsyncClassifier(transport, in_flight=4).classify(texts_of(6400))
        assert raised.value is error
        assert transport.running == 0
        assert len(transport.inner.requests) < 10
        assert await running_besides_me() == 0

    asyncio.run(main())


def test_a_call_that_waits_for_its_turn_keeps_its_deadline() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        transport = AsyncMemoryTransport(gate=gate)
        classifier = AsyncClassifier(transport, in_flight=1)
        first = asyncio.create_task(classifier.classify(["a"]))
        while transport.running < 1:
            await asyncio.sleep(0)
        with pytest.raises(TimedOut, match=re.escape("the 0.05 s of this call are over")):
            await classifier.classify(["b"], timeout_s=0.05)  # for as long as the gate is closed, nothing else ends it
        gate.set()
        assert len(await first) == 1
        assert len(await classifier.classify(["c"])) == 1

    asyncio.run(main())


def test_a_cancelled_call_leaves_nothing_running_and_the_classifier_usable() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        transport = AsyncMemoryTransport(gate=gate)
        classifier = AsyncClassifier(transport, in_flight=4)
        call = asyncio.create_task(classifier.classify(texts_of(640)))
        while transport.running < 4:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (transport.running, transport.cancelled) == (0, 4)
        assert await running_besides_me() == 0
        gate.set()
        assert len(await classifier.classify(texts_of(640))) == 640  # every slot was given back

    asyncio.run(main())


def test_a_call_cancelled_while_it_waits_to_try_again_ends_at_once() -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        transport = AsyncMemoryTransport(error=Unavailable("gone"), error_at=None)
        call = asyncio.create_task(AsyncClassifier(transport, retry=RetryPolicy(), sleep=sleep).classify(["a"]))
        await waiting.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await running_besides_me() == 0

    asyncio.run(main())


def test_a_call_outlives_failures_and_the_order_stays() -> None:
    async def main() -> None:
        transport = AsyncMemoryTransport(error=Unavailable("restarting"), error_at=range(1, 30, 3))
        classifier = AsyncClassifier(transport, retry=RetryPolicy(), in_flight=4, sleep=no_wait)
        predictions = await classifier.classify(texts_of(1280), request_id="job")
        assert [prediction.text for prediction in predictions] == texts_of(1280)
        assert {name for _, name in transport.inner.calls} == {f"job/{number}" for number in range(20)}
        assert len(transport.inner.requests) == 30

    asyncio.run(main())


def test_a_failure_tells_its_request_and_its_attempts() -> None:
    async def main() -> None:
        transport = AsyncMemoryTransport(error=Unavailable("gone"), error_at=None)
        classifier = AsyncClassifier(transport, retry=RetryPolicy(attempts=3), sleep=no_wait)
        with pytest.raises(Unavailable) as raised:
            await classifier.classify(["a"], request_id="mine")
        assert (raised.value.request_id, raised.value.attempts) == ("mine", 3)

    asyncio.run(main())


def test_bad_texts_wrong_answers_and_a_missing_model_are_told_as_by_the_sync_classifier() -> None:
    async def main() -> None:
        transport = AsyncMemoryTransport(ready=False)
        async with AsyncClassifier(transport, model="bert_candidate") as classifier:
            with pytest.raises(BadRequest, match="text 1 is empty"):
                await classifier.classify(["a", " "])
            with pytest.raises(Unavailable, match="bert_candidate is not ready"):
                await classifier.check_ready()
        assert transport.inner.requests == []
        assert transport.closed == 1
        with pytest.raises(ServerError, match="1 texts were sent"):
            await AsyncClassifier(AsyncMemoryTransport(extra_rows=1)).classify(["a"])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "rest"}, "protocol is 'rest'; use one of grpc, http"),
        ({"timeout_s": 0}, "timeout_s is 0; it must be above 0"),
        ({"in_flight": 0}, "in_flight is 0; at least 1 is needed"),
    ],
)
def test_what_cannot_be_connected_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        connect_async("127.0.0.1:1", **options)


def test_every_async_transport_has_all_that_the_protocol_asks() -> None:
    for kind in (AsyncGrpcTransport, AsyncHttpTransport, AsyncMemoryTransport):
        assert {name for name in vars(AsyncTransport) if not name.startswith("_")} <= set(vars(kind))
