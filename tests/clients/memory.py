"""A transport that answers out of memory.

A full implementation of `clients.transport.Transport`: it stands in for the socket and nothing else. Its "model" is a
function of the text alone, so that a prediction in the wrong place shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clients.payload import Texts
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
        error_at: int = 0,
        extra_rows: int = 0,
        ready: bool = True,
    ) -> None:
        self.labels, self.model = labels, model
        self.error, self.error_at, self.extra_rows = error, error_at, extra_rows
        self.is_ready = ready
        self.requests: list[list[bytes]] = []
        self.closed = False

    def infer(self, texts: Texts, *, classes: bool) -> Answer:
        """See `Transport.infer`; raises `error` at request number `error_at`."""
        sent: list[bytes] = texts[:, 0].tolist()
        self.requests.append(sent)
        if self.error is not None and len(self.requests) - 1 == self.error_at:
            raise self.error
        answered = [*sent, *([b"extra"] * self.extra_rows)][: len(sent) + self.extra_rows]
        logits = [self.model(text) for text in answered]
        return {
            LOGITS: self._classified(logits) if classes else np.array(logits, dtype=np.float32),
            TRUNCATED: np.array([[len(text) > 20] for text in answered], dtype=np.bool_),
            RELEASE: np.full((len(answered), 1), RELEASE_ID, dtype=np.object_),
        }

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
