"""Served parity: the server's answers against the checkpoint's own, over gRPC and over HTTP.

    python -m loadtests.parity build/predictions.jsonl --grpc-url 127.0.0.1:8001 --http-url 127.0.0.1:8000

The file comes from `python -m training.predict`. Exit code 1 unless every label is the checkpoint's, no logit is further
off than the bound, gRPC and HTTP give the very same logits one request at a time, and nearly the same under concurrent load,
when requests share batches.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from clients import ClassifierError, connect
from clients.wire import ProtocolName
from contract.command import Failure, UsageError, run_command
from contract.files import read_json_lines, write_json

LOGIT_BOUND = 1e-3
"""Largest difference between a served logit and the checkpoint's."""

CONCURRENT_BOUND = 1e-5
"""Largest difference between the protocols when requests share batches: another batch shape rounds differently."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """Compare served answers with the checkpoint's own."""

    predictions: Annotated[Path, tyro.conf.Positional]
    """JSON lines of training.predict."""
    grpc_url: str = "127.0.0.1:8001"
    """host:port of gRPC."""
    http_url: str = "127.0.0.1:8000"
    """host:port of HTTP."""
    concurrency: int = 8
    """Requests in flight in the second pass, at least 2."""
    output: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if self.concurrency < 2:
            raise UsageError(f"--concurrency is {self.concurrency}; it must be at least 2")


@dataclass(frozen=True)
class ServedParity:
    """What was compared and how far apart it was."""

    texts: int
    labels_equal: dict[str, int]
    """Texts whose served label is the checkpoint's, by protocol."""
    flags_equal: dict[str, int]
    """Texts whose `truncated` is the checkpoint's, by protocol."""
    max_logit_difference: dict[str, float]
    """Served against checkpoint, by protocol, one request at a time."""
    grpc_http_one_at_a_time: float
    """Largest logit difference between the protocols, one request at a time."""
    grpc_http_concurrent: float
    """The same with `concurrency` requests in flight over each."""
    concurrency: int
    releases: list[str]
    """Every release that answered."""

    @property
    def failures(self) -> list[str]:
        """What is not as it must be; empty when served and checkpoint agree."""
        found = [
            f"{name}: {equal} of {self.texts} labels are the checkpoint's"
            for name, equal in self.labels_equal.items()
            if equal != self.texts
        ]
        found += [
            f"{name}: {equal} of {self.texts} truncation flags agree"
            for name, equal in self.flags_equal.items()
            if equal != self.texts
        ]
        found += [
            f"{name}: logits differ by up to {difference:.3g}, allowed {LOGIT_BOUND:g}"
            for name, difference in self.max_logit_difference.items()
            if not difference <= LOGIT_BOUND
        ]
        if self.grpc_http_one_at_a_time != 0:
            found.append(f"one at a time, gRPC and HTTP differ by {self.grpc_http_one_at_a_time:.3g}, wanted 0")
        if not self.grpc_http_concurrent <= CONCURRENT_BOUND:
            found.append(f"under load, gRPC and HTTP differ by {self.grpc_http_concurrent:.3g}, allowed {CONCURRENT_BOUND:g}")
        return found


def measure_parity(rows: list[dict[str, Any]], urls: dict[ProtocolName, str], *, concurrency: int) -> ServedParity:
    """Send every text over both protocols, one at a time and concurrently. Raises ClassifierError."""
    texts = [row["text"] for row in rows]
    expected = np.array([row["logits"] for row in rows], dtype=np.float32)
    alone: dict[str, Float32] = {}
    labels_equal: dict[str, int] = {}
    flags_equal: dict[str, int] = {}
    releases: set[str] = set()
    for protocol, url in urls.items():
        with connect(url, protocol) as classifier:
            alone[protocol] = np.concatenate(
                [classifier.logits([text]) for text in tqdm(texts, desc=f"one at a time, {protocol}", mininterval=0.5)]
            )
            predictions = classifier.classify(texts)
        pairs = list(zip(predictions, rows, strict=True))
        labels_equal[protocol] = sum(prediction.label == row["label"] for prediction, row in pairs)
        flags_equal[protocol] = sum(prediction.truncated == row["truncated"] for prediction, row in pairs)
        releases |= {prediction.release for prediction in predictions}
    together = {protocol: _concurrently(texts, url, protocol, concurrency) for protocol, url in urls.items()}
    return ServedParity(
        texts=len(texts),
        labels_equal=labels_equal,
        flags_equal=flags_equal,
        max_logit_difference={name: _distance(logits, expected) for name, logits in alone.items()},
        grpc_http_one_at_a_time=_distance(alone["grpc"], alone["http"]),
        grpc_http_concurrent=_distance(together["grpc"], together["http"]),
        concurrency=concurrency,
        releases=sorted(releases),
    )


def _concurrently(texts: list[str], url: str, protocol: ProtocolName, concurrency: int) -> Float32:
    """The logits of every text, with so many clients sending one text at a time each."""

    def work(worker: int) -> list[tuple[int, Float32]]:
        with connect(url, protocol) as classifier:
            return [(number, classifier.logits([texts[number]])[0]) for number in range(worker, len(texts), concurrency)]

    with ThreadPoolExecutor(concurrency) as pool:
        answers = dict(pair for part in pool.map(work, range(concurrency)) for pair in part)
    return np.stack([answers[number] for number in range(len(texts))])


def _distance(ours: Float32, theirs: Float32) -> float:
    return float(np.abs(ours - theirs).max())


def main(options: ParityOptions) -> None:
    """Run the command; see the module docstring."""
    rows = list(read_json_lines(options.predictions))
    keys = {"text", "label", "logits", "truncated"}
    if not rows or any(not isinstance(row, dict) or set(row) != keys for row in rows):
        raise UsageError(f"{options.predictions} must hold the lines that python -m training.predict writes, at least one")
    try:
        parity = measure_parity(rows, {"grpc": options.grpc_url, "http": options.http_url}, concurrency=options.concurrency)
    except ClassifierError as error:
        raise Failure(f"{type(error).__name__}: {error}") from error
    if options.output:
        write_json(options.output, dataclasses.asdict(parity) | {"failures": parity.failures})
    if parity.failures:
        raise Failure("the served answers are not the checkpoint's:\n  " + "\n  ".join(parity.failures))
    print(
        f"{parity.texts} texts, {', '.join(parity.labels_equal)}: every label is the checkpoint's; logits within "
        f"{max(parity.max_logit_difference.values()):.2g} of it (allowed {LOGIT_BOUND:g}); gRPC to HTTP: "
        f"{parity.grpc_http_one_at_a_time:.2g} one at a time, {parity.grpc_http_concurrent:.2g} at {parity.concurrency} a time"
    )


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(ParityOptions, prog="python -m loadtests.parity", description=__doc__)))
