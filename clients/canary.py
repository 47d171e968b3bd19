"""A client that sends a share of its requests to the candidate release, and writes down how the two releases compare.

    with CanaryClassifier("127.0.0.1:8001", share=0.05, record=Path("canary.jsonl")) as classifier:
        classifier.classify(["How do I sort a list?"], key=user_id)

Triton's ensembles cannot route, so the candidate has an ensemble of its own, `bert_candidate`, and the choice is made here: it
costs nothing, where a router model in the server would cost every request one more hop. The same key always takes the same
way. Where the candidate fails, the caller gets the serving release's answer, and the failure is written down.
`python -m serving.canary` reads the records and decides. Without a candidate both ensembles serve the same release.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from clients.classifier import DEFAULT_TIMEOUT_S, Classifier, Prediction, connect
from clients.errors import ClassifierError
from clients.payload import Features
from clients.transport import ProtocolName
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


def takes_part(key: str, share: float) -> bool:
    """Whether requests of this key are in the share; the same on every machine, and growing with `share`."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) < share * 2**64


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
    ) -> None:
        """Connect to both ensembles.

        Args:
            share: of the requests, 0 to 1, by key where one is given.
            shadow: the share is asked for comparison alone: its callers get the serving release's answer.
            record: JSON lines file to add an `Outcome` to for each request of the share; several clients may share one.

        Raises:
            ValueError: a share outside 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; it must be in 0 to 1")
        self._share, self._shadow = share, shadow
        self._serving: Classifier = connect(url, protocol, timeout_s=timeout_s, model=CLASSIFIER)
        self._candidate: Classifier = connect(url, protocol, timeout_s=timeout_s, model=CANDIDATE)
        self._record = None if record is None else record.open("ab", buffering=0)  # one write a line: lines never mix
        self._asked = 0

    def classify(
        self, texts: Sequence[str], *, features: Sequence[Features] | None = None, key: str | None = None
    ) -> list[Prediction]:
        """One prediction a text, in order; `Prediction.release` says which release answered. For `features` see `Classifier`.

        Raises:
            ClassifierError: the serving release failed, or the texts are wrong.
        """
        chosen = random.random() < self._share if key is None else takes_part(key, self._share)
        if not chosen:
            return self._serving.classify(texts, features=features)
        ours, theirs, outcome = self.compare(texts, features=features)
        self._note(outcome)
        return ours if self._shadow or theirs is None else theirs

    def _note(self, outcome: Outcome) -> None:
        """Add it to the record. A full disk loses evidence, never an answer."""
        if self._record is None:
            return
        try:
            self._record.write(json.dumps(dataclasses.asdict(outcome)).encode() + b"\n")
        except OSError as error:
            warnings.warn(f"an outcome is missing from {self._record.name}: {error}", stacklevel=3)

    def compare(
        self, texts: Sequence[str], *, features: Sequence[Features] | None = None
    ) -> tuple[list[Prediction], list[Prediction] | None, Outcome]:
        """Ask both: the serving release's predictions, the candidate's (None where it failed), and how they compare.

        A candidate that refuses a text which the serving release takes has failed. Raises as `classify` does.
        """
        self._asked += 1
        error: ClassifierError | None = None
        ours: list[Prediction] = []
        theirs: list[Prediction] | None = None
        seconds, at = {CLASSIFIER: 0.0, CANDIDATE: 0.0}, time.time()
        for model in (CLASSIFIER, CANDIDATE) if self._asked % 2 else (CANDIDATE, CLASSIFIER):  # neither is always the second
            started = time.perf_counter()
            if model == CLASSIFIER:
                ours = self._serving.classify(texts, features=features)
            else:
                theirs, error = self._ask_candidate(texts, features)
            seconds[model] = time.perf_counter() - started
        outcome = Outcome(
            candidate=theirs[0].release if theirs else "",
            serving=ours[0].release if ours else "",
            texts=len(texts),
            disagreements=sum(a.label != b.label for a, b in zip(ours, theirs or ours, strict=True)),
            candidate_ms=round(1000 * seconds[CANDIDATE], 3),
            serving_ms=round(1000 * seconds[CLASSIFIER], 3),
            error=f"{type(error).__name__}: {error}" if error else None,
            at=round(at, 3),
        )
        return ours, theirs, outcome

    def _ask_candidate(
        self, texts: Sequence[str], features: Sequence[Features] | None
    ) -> tuple[list[Prediction] | None, ClassifierError | None]:
        try:
            return self._candidate.classify(texts, features=features), None
        except ClassifierError as error:
            return None, error

    def close(self) -> None:
        """Give the connections and the record back."""
        self._serving.close()
        self._candidate.close()
        if self._record is not None:
            self._record.close()

    def __enter__(self) -> CanaryClassifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()
