"""A transport that answers out of memory.

A full implementation of `clients.transport.Transport`: it stands in for the socket and nothing else. Its "model" is a
function of the text alone, so that a prediction in the wrong place shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from clients.payload import Numbers, Texts
from clients.transport import Answer
from contract.tensors import LOGITS, RELEASE, TRUNCATED

RELEASE_ID = b"memory-000000000000"
LABELS = ("cold", "warm", "a:b")


def logits_of(text: bytes) -> list[float]:
    """One logit a label, out of the text's bytes."""
    return [float(np.float32(np.sin(sum(text) + number * len(text)))) for number in range(len(LABELS))]


class MemoryTransport:
    """Answers every request, and keeps it for the test to look at."""

    def __init__(
        self,
        *,
        labels: Sequence[str] = LABELS,
        model: Callable[[bytes], list[float]] = logits_of,
        error: Exception | None = None,
        error_at: int | Collection[int] | None = 0,
        extra_rows: int = 0,
        ready: bool = True,
    ) -> None:
        self.labels, self.model = labels, model
        self.error, self.error_at, self.extra_rows = error, error_at, extra_rows
        self.is_ready = ready
        self.requests: list[list[bytes]] = []
        self.calls: list[tuple[float | None, str]] = []
        self.closed = False

    def infer(
        self,
        texts: Texts,
        *,
        classes: bool,
        timeout_s: float | None = None,
        request_id: str = "",
        features: Numbers | None = None,
    ) -> Answer:
        """See `Transport.infer`; raises `error` at request number `error_at`, at each of them, or at every one (None)."""
        self.calls.append((timeout_s, request_id))
        sent: list[bytes] = texts[:, 0].tolist()
        self.requests.append(sent)
        if self.error is not None and self._fails(len(self.requests) - 1):
            raise self.error
        answered = [*sent, *([b"extra"] * self.extra_rows)][: len(sent) + self.extra_rows]
        logits = [self.model(text) for text in answered]
        return {
            LOGITS: self._classified(logits) if classes else np.array(logits, dtype=np.float32),
            TRUNCATED: np.array([[len(text) > 20] for text in answered], dtype=np.bool_),
            RELEASE: np.full((len(answered), 1), RELEASE_ID, dtype=np.object_),
        }

    def _fails(self, number: int) -> bool:
        if self.error_at is None or isinstance(self.error_at, int):
            return self.error_at is None or number == self.error_at
        return number in self.error_at

    def _classified(self, logits: list[list[float]]) -> Texts:
        """[B, C] of b"logit:index:label", the best first, as Triton's classification extension answers."""
        rows = []
        for row in logits:
            order = sorted(range(len(row)), key=lambda index: -row[index])
            rows.append([f"{row[index]:.6f}:{index}:{self.labels[index]}".encode() for index in order])
        return np.array(rows, dtype=np.object_)

    def ready(self) -> bool:
        """See `Transport.ready`."""
        return self.is_ready

    def close(self) -> None:
        """See `Transport.close`."""
        self.closed = True
