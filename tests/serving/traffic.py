"""Traffic on a served classifier: clients without any retry that check every answer against what its release is known to say.

Closed loop: a client sends its next request when it has its answer. Open loop: requests are due at fixed times, whatever the
server does, and their latency counts from then; so it holds the waiting that a closed loop hides.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc

from contract.tensors import CLASSIFIER, LOGITS, RELEASE, STEPS, TEXT
from serving.gate import Gate
from serving.rehearsal import run_rehearsal
from tests.served import deployed

Known = dict[str, np.ndarray]  # type: ignore[type-arg]
"""Release id -> logits [texts, C] that it gives."""

BOUND = 1e-2
"""Logits nearer than this to what is known are the same; releases in a test are further apart."""


ANY = Gate(accept_disagreement=True, max_slowdown=1000)
"""Lets every release pass that answers rightly: how fast a crowded machine is says nothing."""


def known_answers(scratch: Path, releases: Iterable[Path], texts: list[str]) -> Known:
    """What each release says to the texts, by its own python models in a process of their own."""
    repository, known = deployed(scratch), {}
    for version, release in enumerate(releases, 1):
        rehearsal = run_rehearsal(
            repository.copy_in(release, version),
            version,
            configs={step: repository.step_config(step) for step in STEPS},
            texts=texts,
            packages=[],
            niceness=0,
        )
        known[rehearsal.release] = np.array(rehearsal.logits)
    return known


@dataclass
class Answers:
    """What the clients got. Filled by many threads, read when they have ended."""

    latencies: list[tuple[float, float]] = field(default_factory=list)
    """(when it was due, latency), both seconds, the first on the clock of `time.monotonic`."""
    by_release: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    """When each of these was due, on the same clock."""
    mixed: list[str] = field(default_factory=list)
    """Answers whose logits are not those of the release whose name they bear."""

    def within(self, *windows: tuple[float, float]) -> list[float]:
        """Latencies of the requests that were due in one of the windows, each (start, end)."""
        return [latency for due, latency in self.latencies if any(start <= due < end for start, end in windows)]

    def p99_ms(self, *windows: tuple[float, float]) -> float:
        """99th percentile of the latencies of the requests that were due in one of the windows, milliseconds."""
        return float(1000 * np.percentile(self.within(*windows), 99))


class Traffic:
    """Clients of one server."""

    def __init__(self, url: str, texts: list[str], known: Known, *, bound: float = BOUND) -> None:
        self._url, self._texts, self._known, self._bound = url, texts, known, bound
        self.answers = Answers()
        self._stop = threading.Event()
        self._turn = 0
        self._lock = threading.Lock()

    @contextmanager
    def running(self, *, closed: int = 0, think_s: float = 0.0, rate: float = 0.0, workers: int = 8) -> Iterator[Answers]:
        """Traffic for as long as the block lasts.

        Args:
            closed: clients in a closed loop, each of which pauses for `think_s` after an answer.
            rate: requests a second of the open loop, sent by so many `workers`.
        """
        self._stop.clear()
        started = time.monotonic()
        threads = [threading.Thread(target=self._closed, args=(think_s,)) for _ in range(closed)]
        if rate:
            threads += [threading.Thread(target=self._open, args=(started, rate)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            yield self.answers
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _next(self) -> int:
        with self._lock:
            self._turn += 1
            return self._turn

    def _closed(self, think_s: float) -> None:
        client = tritonclient.grpc.InferenceServerClient(self._url)
        while not self._stop.is_set():
            self._ask(client, self._next(), time.monotonic())
            if think_s:
                self._stop.wait(think_s)
        client.close()

    def _open(self, started: float, rate: float) -> None:
        client = tritonclient.grpc.InferenceServerClient(self._url)
        first = self._turn
        while not self._stop.is_set():
            number = self._next()
            due = started + (number - first) / rate
            if self._stop.wait(max(due - time.monotonic(), 0)):
                break
            self._ask(client, number, due)
        client.close()

    def _ask(self, client: Any, number: int, due: float) -> None:
        row = number % len(self._texts)
        tensor = tritonclient.grpc.InferInput(TEXT, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[self._texts[row].encode()]], dtype=object))
        try:
            result = client.infer(CLASSIFIER, [tensor], client_timeout=60)
            release, logits = result.as_numpy(RELEASE)[0, 0].decode(), result.as_numpy(LOGITS)[0]
        except Exception as error:  # whatever it is, the request failed, and the figure that counts is how many did
            self.answers.failures.append(f"{type(error).__name__}: {error}")
            self.answers.failed_at.append(due)
            return
        self.answers.latencies.append((due, time.monotonic() - due))
        self.answers.by_release[release] += 1
        expected = self._known.get(release)
        if expected is None or not np.abs(logits - expected[row]).max() < self._bound:
            self.answers.mixed.append(f"{release} answered {logits.tolist()} to text {row}")
