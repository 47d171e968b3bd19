"""Many texts through one asyncio client: whole chunks in order, bad texts answered with an error of their own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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

Prepared = list[tuple[str | None, str | None]]
"""(text, None) or (None, why there is nothing to classify), one a row."""


def prepare(chunk: Chunk, text_column: str) -> Prepared:
    """The texts of a chunk, those that no server would take told apart."""
    return [_prepared(text, problem) for text, problem in zip(chunk.values(text_column), chunk.problems, strict=True)]


def _prepared(text: Any, problem: str) -> tuple[str | None, str | None]:
    try:
        if not problem:
            encode_text(text)
            return text, None
    except BadRequest as error:
        problem = str(error)
    return None, problem


class Scorer:
    """Scores rows with a classifier, `in_flight` requests of `batch` texts at a time."""

    def __init__(self, classifier: AsyncClassifier, *, batch: int, in_flight: int) -> None:
        self._classifier, self._batch = classifier, batch
        self._slots = asyncio.Semaphore(in_flight)  # a request's deadline starts when it is sent, not when it queues here

    async def score(self, rows: Prepared) -> list[Result]:
        """One result a row, in order. Raises ClassifierError when a request fails for another reason than its texts."""
        good = [number for number, (text, _) in enumerate(rows) if text is not None]
        texts = [text for text, _ in rows if text is not None]
        found: dict[int, Result] = {}

        async def send(start: int) -> None:
            numbers = good[start : start + self._batch]
            async with self._slots:
                results = await self._classify(texts[start : start + self._batch])
            found.update(zip(numbers, results, strict=True))

        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(texts), self._batch):
                    group.create_task(send(start))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [found[number] if text is not None else Result(error=problem) for number, (text, problem) in enumerate(rows)]

    async def _classify(self, texts: Sequence[str]) -> list[Result]:
        """One request; when the server refuses its texts, halves of it, until the bad ones stand alone."""
        try:
            predictions = await self._classifier.classify(texts)
        except BadRequest as error:
            if len(texts) == 1:
                return [Result(error=str(error))]
            half = len(texts) // 2
            return await self._classify(texts[:half]) + await self._classify(texts[half:])
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
