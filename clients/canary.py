"""A client that sends a share of its requests to the candidate release, and writes down how the two releases compare.

    with CanaryClassifier("127.0.0.1:8001", share=0.05, record=Path("canary.jsonl")) as classifier:
        classifier.classify(["How do I sort a list?"], key=user_id)

Triton's ensembles cannot route, so the candidate has an ensemble of its own, `bert_candidate`, and the choice is made here: it
costs nothing, where a router model in the server would cost every request one more hop. The same key always takes the same
way. Where the candidate fails, the caller gets the serving release's answer, and the failure is written down.
`python -m serving.canary` reads the records and decides. Without a candidate both ensembles serve the same release.
`AsyncCanaryClassifier` is the same for asyncio.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from clients.async_classifier import DEFAULT_IN_FLIGHT, AsyncClassifier, connect_async
from clients.classifier import Classifier, connect
from clients.errors import ClassifierError, Rejected
from clients.payload import Features
from clients.prediction import Prediction
from clients.retry import RetryPolicy
from clients.tls import Tls
from clients.wire import DEFAULT_TIMEOUT_S, ProtocolName
from contract.tensors import CANDIDATE, CLASSIFIER


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request that both releases were asked."""

    candidate: str
    """Id of the release that answered as candidate; "" when it failed."""
    serving: str
    """Id of the release that serves."""
    texts: int
    disagreements: int
    """Texts with different labels."""
    candidate_ms: float
    serving_ms: float
    error: str | None = None
    """Why the candidate did not answer."""
    at: float = 0.0
    """When it was asked, in seconds since 1970."""


Compared = tuple[list[Prediction], list[Prediction] | None, Outcome | None]
"""The serving release's predictions, the candidate's, and how they compare."""


def takes_part(key: str, share: float) -> bool:
    """Whether requests of this key are in the share; the same on every machine, and growing with `share`."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64


@dataclass
class _Pair:
    """What the two releases said to one request."""

    answers: dict[str, list[Prediction]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    error: ClassifierError | None = None
    at: float = field(default_factory=time.time)

    @contextmanager
    def asking(self, model: str) -> Iterator[None]:
        """Times the block, and keeps the candidate's failure, which is not the caller's."""
        started = time.perf_counter()
        try:
            yield
        except ClassifierError as error:
            if model == CLASSIFIER:
                raise
            self.error = error
        self.seconds[model] = time.perf_counter() - started

    def compared(self) -> Compared:
        """See `CanaryClassifier.compare`."""
        ours, theirs = self.answers[CLASSIFIER], self.answers.get(CANDIDATE)
        if isinstance(self.error, Rejected):
            return ours, theirs, None
        outcome = Outcome(
            candidate=theirs[0].release if theirs else "",
            serving=ours[0].release if ours else "",
            texts=len(ours),
            disagreements=sum(a.label != b.label for a, b in zip(ours, theirs or ours, strict=True)),
            candidate_ms=round(1000 * self.seconds[CANDIDATE], 3),
            serving_ms=round(1000 * self.seconds[CLASSIFIER], 3),
            error=f"{type(self.error).__name__}: {self.error}" if self.error else None,
            at=round(self.at, 3),
        )
        return ours, theirs, outcome


class _Choice:
    """Who takes part, who is asked first, which answer the caller gets, and the record."""

    def __init__(self, share: float, shadow: bool, record: Path | None) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must be in 0 to 1")
        self._share, self._shadow = share, shadow
        self._record = None if record is None else record.open("ab", buffering=0)  # one write a line: lines never mix
        self._asked = 0

    def takes(self, key: str | None) -> bool:
        """Whether both releases are asked."""
        return random.random() < self._share if key is None else takes_part(key, self._share)

    def order(self) -> tuple[str, str]:
        """The serving release and the candidate: neither is always the second."""
        self._asked += 1
        return (CLASSIFIER, CANDIDATE) if self._asked % 2 else (CANDIDATE, CLASSIFIER)

    def settle(self, compared: Compared) -> list[Prediction]:
        """The caller's answer; the outcome is added to the record. A full disk loses evidence, never an answer."""
        ours, theirs, outcome = compared
        if self._record is not None and outcome is not None:
            try:
                self._record.write(json.dumps(dataclasses.asdict(outcome)).encode() + b"\n")
            except OSError as error:
                warnings.warn(f"an outcome is missing from {self._record.name}: {error}", stacklevel=3)
        return ours if self._shadow or theirs is None else theirs

    def close(self) -> None:
        """Give the record back."""
        if self._record is not None:
            self._record.close()


class CanaryClassifier:
    """Two `Classifier`s and the choice between them. Close it, or use it as a context manager; not shared between threads."""

    def __init__(
        self,
        url: str,
        protocol: ProtocolName = "grpc",
        *,
        share: float = 0.05,
        shadow: bool = False,
        record: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Connect to both ensembles.

        Args:
            share: of the requests, 0 to 1, by key where one is given.
            shadow: the share is asked for comparison alone: its callers get the serving release's answer.
            record: JSON lines file to add an `Outcome` to for each request of the share; several clients may share one.
            timeout_s, retry, tls: as those of `connect`, for either release.

        Raises:
            ValueError: a share outside 0 to 1, or as `connect` raises it.
        """
        self._choice = _Choice(share, shadow, record)
        self._clients: dict[str, Classifier] = {
            model: connect(url, protocol, model=model, timeout_s=timeout_s, retry=retry, tls=tls)
            for model in (CLASSIFIER, CANDIDATE)
        }

    def classify(
        self, texts: Sequence[str], *, features: Sequence[Features] | None = None, key: str | None = None
    ) -> list[Prediction]:
        """One prediction a text, in order; `Prediction.release` says which release answered. For `features` see `Classifier`.

        Raises:
            ClassifierError: the serving release failed, or the texts are wrong.
        """
        if not self._choice.takes(key):
            return self._clients[CLASSIFIER].classify(texts, features=features)
        return self._choice.settle(self.compare(texts, features=features))

    def compare(self, texts: Sequence[str], *, features: Sequence[Features] | None = None) -> Compared:
        """Ask both: the serving release's predictions, the candidate's (None where it failed), and how they compare.

        A candidate that refuses a text which the serving release takes has failed. One that is asked while the server is full
        has not, and that comparison is None. Raises as `classify` does.
        """
        pair = _Pair()
        for model in self._choice.order():
            with pair.asking(model):
                pair.answers[model] = self._clients[model].classify(texts, features=features)
        return pair.compared()

    def close(self) -> None:
        """Give the connections and the record back."""
        for client in self._clients.values():
            client.close()
        self._choice.close()

    def __enter__(self) -> CanaryClassifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class AsyncCanaryClassifier:
    """`CanaryClassifier` for one event loop; any number of calls may run at once. Close it, or use `async with`."""

    def __init__(
        self,
        url: str,
        protocol: ProtocolName = "grpc",
        *,
        share: float = 0.05,
        shadow: bool = False,
        record: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        tls: Tls | None = None,
        in_flight: int = DEFAULT_IN_FLIGHT,
    ) -> None:
        """See `CanaryClassifier`; `in_flight` is that of `connect_async`, for either release."""
        self._choice = _Choice(share, shadow, record)
        self._clients: dict[str, AsyncClassifier] = {
            model: connect_async(url, protocol, model=model, timeout_s=timeout_s, retry=retry, tls=tls, in_flight=in_flight)
            for model in (CLASSIFIER, CANDIDATE)
        }

    async def classify(
        self, texts: Sequence[str], *, features: Sequence[Features] | None = None, key: str | None = None
    ) -> list[Prediction]:
        """See `CanaryClassifier.classify`."""
        if not self._choice.takes(key):
            return await self._clients[CLASSIFIER].classify(texts, features=features)
        return self._choice.settle(await self.compare(texts, features=features))

    async def compare(self, texts: Sequence[str], *, features: Sequence[Features] | None = None) -> Compared:
        """See `CanaryClassifier.compare`."""
        pair = _Pair()
        for model in self._choice.order():
            with pair.asking(model):
                pair.answers[model] = await self._clients[model].classify(texts, features=features)
        return pair.compared()

    async def close(self) -> None:
        """Give the connections and the record back."""
        for client in self._clients.values():
            await client.close()
        self._choice.close()

    async def __aenter__(self) -> AsyncCanaryClassifier:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
