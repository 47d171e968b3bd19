"""Many texts through one asyncio client: whole chunks in order, bad texts answered with an error of their own."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from clients.async_classifier import AsyncClassifier
from clients.errors import BadRequest
from clients.payload import encode_text
from clients.tables import Chunk

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What one row gets; either the first four are there, or `error` is."""

    label: str | None = None
    score: float | None = None
    truncated: bool | None = None
    release: str | None = None
    error: str | None = None


FIELDS: dict[str, type] = {"label": str, "score": float, "truncated": bool, "release": str, "error": str}
"""The columns that a result becomes."""


class Row(NamedTuple):
    """One row to score."""

    text: str | None
    """None where there is nothing to classify."""
    problem: str | None
    """Why; None where there is."""
    features: list[float] | None = None
    """The numbers beside the text, where the release reads some."""


Prepared = list[Row]


def prepare(chunk: Chunk, text_column: str, feature_columns: Sequence[str] = ()) -> Prepared:
    """The rows of a chunk, those that no server would take told apart."""
    beside = [chunk.values(column) for column in feature_columns]
    texts = zip(chunk.values(text_column), chunk.problems, strict=True)
    return [
        _prepared(text, problem, {name: cells[row] for name, cells in zip(feature_columns, beside, strict=True)})
        for row, (text, problem) in enumerate(texts)
    ]


def _prepared(text: Any, problem: str, features: dict[str, Any]) -> Row:
    try:
        if not problem:
            encode_text(text)
            return Row(text, None, [_number(name, cell) for name, cell in features.items()] or None)
    except BadRequest as error:
        problem = str(error)
    return Row(None, problem)


def _number(name: str, cell: Any) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"the feature {name} is {cell!r}; a finite number is needed")
    return value


class Scorer:
    """Scores rows with a classifier, `in_flight` requests of `batch` texts at a time."""

    def __init__(self, classifier: AsyncClassifier, *, batch: int, in_flight: int) -> None:
        self._classifier, self._batch = classifier, batch
        self._slots = asyncio.Semaphore(in_flight)  # a request's deadline starts when it is sent, not when it queues here

    async def score(self, rows: Prepared) -> list[Result]:
        """One result a row, in order. Raises ClassifierError when a request fails for another reason than its texts."""
        good = [number for number, row in enumerate(rows) if row.text is not None]
        found: dict[int, Result] = {}

        async def send(start: int) -> None:
            numbers = good[start : start + self._batch]
            async with self._slots:
                results = await self._classify([rows[number] for number in numbers])
            found.update(zip(numbers, results, strict=True))

        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(good), self._batch):
                    group.create_task(send(start))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [found.get(number) or Result(error=row.problem) for number, row in enumerate(rows)]

    async def _classify(self, rows: Prepared) -> list[Result]:
        """One request; when the server refuses its texts, halves of it, until the bad ones stand alone."""
        texts = [row.text for row in rows if row.text is not None]
        features = [row.features for row in rows if row.features is not None] or None
        try:
            predictions = await self._classifier.classify(texts, features=features)
        except BadRequest as error:
            if len(rows) == 1:
                return [Result(error=str(error))]
            half = len(rows) // 2
            return await self._classify(rows[:half]) + await self._classify(rows[half:])
        return [Result(row.label, row.score, row.truncated, row.release) for row in predictions]


async def in_order(
    chunks: Iterable[T], scorer: Scorer, rows_of: Callable[[T], Prepared]
) -> AsyncGenerator[tuple[T, list[Result]], None]:
    """Every chunk with its results, in order; the next chunk is under way while one is finished, so requests never run dry."""
    pending: deque[tuple[T, asyncio.Task[list[Result]]]] = deque()
    try:
        for chunk in chunks:
            pending.append((chunk, asyncio.create_task(scorer.score(rows_of(chunk)))))
            if len(pending) > 1:
                yield pending[0][0], await pending[0][1]
                pending.popleft()
        while pending:
            yield pending[0][0], await pending[0][1]
            pending.popleft()
    finally:
        for _, task in pending:
            task.cancel()
        await asyncio.gather(*(task for _, task in pending), return_exceptions=True)
