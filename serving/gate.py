"""What a release has to pass on the running server before it serves: right answers, agreement, speed.

The candidate is reached through the second ensemble, pinned to it, while every other request goes to the release that serves.
Probes are polite: one text at a time, and after each a pause of three times as long as its answer took, so that they never hold
the processor for more than a quarter of the time, and the less the longer they queue behind the traffic.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from clients import ClassifierError, connect
from contract.command import Failure, UsageError
from contract.files import read_json_lines
from contract.probes import Probes
from contract.tensors import BUCKET_LENGTHS, CANDIDATE, CLASSIFIER
from serving.deployment import PATIENT

Answered = TypeVar("Answered")
Row = dict[str, Any]
"""{"text"}, and "features" where the releases read them."""

PAUSE = 3.0
"""After a probe, in times of how long its answer took. At 1, a server with a load of 80 % was overloaded while it compared."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The limits."""

    agreement: float = 0.8
    """Smallest share of texts on which the new release's label must be the serving one's."""
    accept_disagreement: bool = False
    """Publish whatever the agreement: a model that was meant to answer differently, or with other labels."""
    max_slowdown: float = 3.0
    """Largest median latency, one request in flight, relative to the serving release's."""
    probe: Path | None = None
    """File of more texts to compare on: one a line, or with the suffix .jsonl an object with "text" (and "features") a line."""

    def __post_init__(self) -> None:
        if not 0 <= self.agreement <= 1:
            raise UsageError(f"--agreement is {self.agreement}; it must be in 0 to 1")
        if not self.max_slowdown > 0:
            raise UsageError(f"--max-slowdown is {self.max_slowdown}; it must be above 0")

    def rows(self) -> list[Row]:
        """Those of `probe`. Raises `UsageError` when it cannot be read or has none."""
        return [] if self.probe is None else read_rows(self.probe)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The new release beside the serving one, on the same texts."""

    texts: int
    agreement: float
    """Share of texts with the same label."""
    old_ms: float
    """Median latency of the serving release, milliseconds."""
    new_ms: float

    @property
    def slowdown(self) -> float:
        """New latency over old."""
        return self.new_ms / self.old_ms


def read_rows(path: Path) -> list[Row]:
    """Rows of a file: a text a line, or each object of a .jsonl file. Raises `UsageError` when there is none."""
    if path.suffix == ".jsonl":
        rows: list[Row] = list(read_json_lines(path))
        if not all(isinstance(row, dict) and isinstance(row.get("text"), str) for row in rows):
            raise UsageError(f'{path} must have an object with a "text" on every line')
    else:
        try:
            rows = [{"text": text} for text in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read texts from {path}: {error}") from error
    rows = [row for row in rows if row["text"].strip()]
    if not rows:
        raise UsageError(f"{path} holds no text")
    return rows


def settle(url: str, row: Row) -> None:
    """Let what queued up behind a load be answered: ask the serving release, which takes as long as its queue, and pause."""
    with connect(url, "http", model=CLASSIFIER, retry=PATIENT) as serving:
        _ask(serving.classify, row)


def warm_up(url: str, max_length: int, row: Row) -> int:
    """Send the candidate a text of every bucket length of the release, all with the features of `row`; how many those were."""
    lengths = [length for length in BUCKET_LENGTHS if length <= max_length] or [max_length]
    with connect(url, "http", model=CANDIDATE, retry=PATIENT) as candidate:
        for length in tqdm(lengths, desc="warming", unit="texts", leave=False, mininterval=0.5):
            _ask(candidate.classify, row | {"text": "a " * max(length - 2, 1)})  # two tokens are [CLS] and [SEP]
    return len(lengths)


def check_answers(url: str, probes: Probes) -> None:
    """Raise `Failure` unless the candidate gives its own checkpoint's answers on this very server."""
    with connect(url, "http", model=CANDIDATE, retry=PATIENT) as candidate:
        rows = tqdm(probes.rows(), desc="replaying", unit="texts", leave=False, mininterval=0.5)
        logits = [_ask(candidate.logits, row)[0][0].tolist() for row in rows]
    wrong = probes.failures(logits)
    if wrong:
        raise Failure(f"the new release does not give its checkpoint's answers on this server: {'; '.join(wrong)}")


def compare(url: str, rows: Sequence[Row]) -> Comparison:
    """Classify the rows with both releases, one request in flight, the order of the two changing from text to text."""
    agreed = 0
    seconds: dict[str, list[float]] = {CLASSIFIER: [], CANDIDATE: []}
    with (
        connect(url, "http", model=CLASSIFIER, retry=PATIENT) as serving,
        connect(url, "http", model=CANDIDATE, retry=PATIENT) as candidate,
    ):
        pair = [(CLASSIFIER, serving), (CANDIDATE, candidate)]
        for number, row in enumerate(tqdm(rows, desc="comparing", unit="texts", leave=False, mininterval=0.5)):
            labels = set()
            for name, classifier in pair if number % 2 else reversed(pair):
                (prediction,), taken = _ask(classifier.classify, row)
                seconds[name].append(taken)
                labels.add(prediction.label)
            agreed += len(labels) == 1
    return Comparison(
        texts=len(rows),
        agreement=agreed / len(rows),
        old_ms=1000 * statistics.median(seconds[CLASSIFIER]),
        new_ms=1000 * statistics.median(seconds[CANDIDATE]),
    )


def check_comparison(comparison: Comparison, gate: Gate) -> None:
    """Raise `Failure` for a comparison outside the limits, saying which and what to do."""
    if comparison.agreement < gate.agreement and not gate.accept_disagreement:
        raise Failure(
            f"the new release agrees with the serving one on {comparison.agreement:.1%} of {comparison.texts} texts, wanted "
            f"{gate.agreement:.1%}; if it is meant to answer differently, publish it with --accept-disagreement"
        )
    if comparison.slowdown > gate.max_slowdown:
        raise Failure(
            f"the new release takes {comparison.new_ms:.1f} ms a text, the serving one {comparison.old_ms:.1f} ms: "
            f"{comparison.slowdown:.2f} times as long, allowed {gate.max_slowdown:g} (--max-slowdown)"
        )


def _ask(question: Callable[..., Answered], row: Row) -> tuple[Answered, float]:
    """The answer to one row and the seconds that it took, after the pause."""
    started = time.perf_counter()
    try:
        answer = question([row["text"]], features=[row["features"]] if row.get("features") else None)
    except ClassifierError as error:
        raise Failure(f"a probe was not answered: {type(error).__name__}: {error}") from error
    seconds = time.perf_counter() - started
    time.sleep(PAUSE * seconds)
    return answer, seconds
