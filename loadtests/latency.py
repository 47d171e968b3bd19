"""Latency of one request in flight: what a caller waits for when nobody else is calling.

    python -m loadtests.latency --texts build/merged/heldout.jsonl --url 127.0.0.1:8001 --protocol grpc

One text a request, real texts, one after the other, warm-up left out. This is a closed loop with one user: it holds no
queueing, and says nothing about latency under load.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from clients import Classifier, ClassifierError, connect
from clients.wire import ProtocolName
from contract.command import Failure, UsageError, run_command
from contract.files import write_json
from loadtests.texts import read_texts


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measure latency with one request in flight."""

    texts: Path
    """JSON lines with a "text" each, e.g. the held-out part of a checkpoint."""
    url: str = "127.0.0.1:8001"
    """host:port of the server, for the protocol chosen."""
    protocol: ProtocolName = "grpc"
    """grpc (Triton's port 8001) or http (8000)."""
    requests: int = 200
    """Requests that are measured, at least 20."""
    warmup: int = 20
    """Requests before them that are not."""
    output: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if self.requests < 20 or self.warmup < 0:
            raise UsageError(f"--requests is {self.requests} (at least 20), --warmup is {self.warmup} (at least 0)")


@dataclass(frozen=True)
class LatencyResult:
    """Latency in milliseconds, from the call to the prediction in hand."""

    protocol: str
    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    max_ms: float
    mean_text_bytes: float


def measure_latency(
    classifier: Classifier, texts: Sequence[str], *, protocol: str, requests: int, warmup: int
) -> LatencyResult:
    """Send the texts one by one, from the first again after the last."""
    latencies_ms: list[float] = []
    sizes: list[int] = []
    for number in tqdm(range(-warmup, requests), desc=f"latency {protocol}", unit="requests", mininterval=0.5):
        text = texts[number % len(texts)]
        started = time.perf_counter()
        classifier.classify([text])
        if number >= 0:
            latencies_ms.append((time.perf_counter() - started) * 1000)
            sizes.append(len(text.encode()))
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99]).tolist()
    return LatencyResult(
        protocol, requests, p50, p95, p99, float(np.mean(latencies_ms)), max(latencies_ms), float(np.mean(sizes))
    )


def main(options: Latency) -> None:
    """Run the command; see the module docstring."""
    texts = read_texts(options.texts)
    try:
        with connect(options.url, options.protocol) as classifier:
            result = measure_latency(
                classifier, texts, protocol=options.protocol, requests=options.requests, warmup=options.warmup
            )
    except ClassifierError as error:
        raise Failure(f"{type(error).__name__}: {error}") from error
    print(
        f"{result.protocol}: p50 {result.p50_ms:.2f} ms   p95 {result.p95_ms:.2f} ms   p99 {result.p99_ms:.2f} ms   "
        f"({result.requests} requests, one in flight)"
    )
    if options.output:
        write_json(options.output, dataclasses.asdict(result))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Latency, prog="python -m loadtests.latency", description=__doc__)))
