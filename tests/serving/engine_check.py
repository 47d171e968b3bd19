"""One engine all the way: every precision built and proved, served, measured, swapped under load; one table. Not for CI:

    python -m tests.serving.engine_check build/merged --engine tensorrt --output docs/measurements/gpu-check.json

`make gpu-check` runs this in NVIDIA's container, where TensorRT, a GPU and its tritonserver are at hand. Any other engine of
`builders.build` takes the same way on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from builders.build import Build, build
from builders.engines import EngineName, Precision
from clients import connect
from contract.command import Failure, UsageError, run_command
from contract.files import write_json
from contract.probes import read_probes
from contract.release import Manifest, read_manifest
from serving.publish import publish
from serving.repository import Repository
from serving.switch import retire, rollback
from tests.served import deployed, serving
from tests.serving.traffic import ANY, BOUND, Answers, Known, Traffic
from training.report import markdown_table

FULL = 32
"""Requests under way while the throughput is measured."""


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """Build, prove, serve, measure and swap every precision of an engine."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder, of training.merge."""
    engine: EngineName = "tensorrt"
    """Of builders.build; tensorrt needs its libraries and a GPU, as in NVIDIA's container."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
    """To build, at least two: they are swapped for each other."""
    work: Path = Path("build/engine-check")
    """Folder for the releases, which a second run takes as they are."""
    seconds: float = 5.0
    """Of each measurement."""
    output: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if len(set(self.precisions)) < 2:
            raise UsageError(f"--precisions is {' '.join(self.precisions)}; at least two are swapped for each other")
        if not self.seconds > 0:
            raise UsageError(f"--seconds is {self.seconds}; it must be above 0")


def releases_of(options: EngineCheck) -> Iterator[Path]:
    """The release of each precision, built and proved unless an earlier run did so."""
    for precision in options.precisions:
        folder = options.work / f"{options.engine}-{precision}"
        if not folder.exists():
            print(f"{options.engine} {precision}:", flush=True)
            rendered = options.work / "rendered"
            build(
                Build(
                    checkpoint=options.checkpoint,
                    output=folder,
                    engine=options.engine,
                    precision=precision,
                    repository=rendered,
                )
            )
        yield folder


def measure(traffic: Traffic, seconds: float) -> dict[str, float]:
    """Median latency with one request in flight, and texts a second with `FULL`, of what serves now."""
    with traffic.running(closed=1) as answers:
        alone = _window(answers, seconds)
    with traffic.running(closed=FULL) as answers:
        full = _window(answers, seconds)
    return {"p50_ms": float(1000 * np.median(alone)), "texts_per_s": len(full) / seconds}


def _window(answers: Answers, seconds: float) -> list[float]:
    """Latencies of the requests of so many seconds, after a fifth of that to warm up."""
    time.sleep(seconds / 5)
    start = time.monotonic()
    time.sleep(seconds)
    found = answers.within((start, np.inf))
    if not found:
        raise Failure(f"no request was answered within {seconds:g} s: {'; '.join(answers.failures[:3]) or 'raise --seconds'}")
    return found


def swap_all(repository: Repository, releases: Sequence[Path], traffic: Traffic, rate: float) -> Answers:
    """Publish every release in turn and go back once, under an open loop of `rate` requests a second."""
    traffic.answers = Answers()
    with traffic.running(rate=rate, workers=16) as answers:
        for folder in tqdm(releases, desc="swapping", unit="releases", mininterval=0.5):
            publish(folder, repository, gate=ANY)
            retire(repository, keep=1)
        rollback(repository)
    return answers


def run(options: EngineCheck) -> dict[str, Any]:
    """Everything; what was found."""
    releases = list(releases_of(options))
    manifests = [read_manifest(folder) for folder in releases]
    texts = read_probes(releases[0]).texts
    served = options.work / f"served-{time.time_ns()}"
    served.mkdir(parents=True)
    repository, known, found = deployed(served, releases[0]), Known(), []
    bound = max(BOUND, *(manifest.parity["bound"] for manifest in manifests))
    with serving(repository) as state:
        traffic = Traffic(state.grpc_url, texts, known, bound=bound)
        for folder, manifest in zip(releases, manifests, strict=True):
            if folder != releases[0]:
                publish(folder, repository, gate=ANY)
                retire(repository, keep=0)
            with connect(state.grpc_url) as classifier:
                known[manifest.release] = classifier.logits(texts)
            found.append(_facts(folder, manifest) | measure(traffic, options.seconds))
        rate = 0.4 * min(row["texts_per_s"] for row in found)
        answers = swap_all(repository, releases, traffic, rate)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": manifests[0].hardware,
        "container": manifests[0].container,
        "runtime": manifests[0].runtime,
        "engines": found,
        "swaps": len(releases) + 1,
        "rate_per_s": rate,
        "requests": len(answers.latencies) + len(answers.failures),
        "p99_ms": answers.p99_ms((-np.inf, np.inf)) if answers.latencies else np.nan,
        "failed": len(answers.failures),
        "mixed": len(answers.mixed),
        "wrong": [*answers.failures[:5], *answers.mixed[:5]],
    }


def _facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What was proved when it was built."""
    engine = [path for path in (folder / "bert_engine").iterdir() if path.name.startswith("model.") and path.suffix != ".py"]
    return {
        "precision": manifest.precision,
        "engine_mb": sum(path.stat().st_size for path in engine) / 1e6,
        "logits_off": manifest.parity["max_abs"],
        "logits_bound": manifest.parity["bound"],
        "label_agreement": manifest.parity["label_agreement"],
    }


def table(found: dict[str, Any]) -> str:
    """What was found, for people."""
    rows = [
        [
            row["precision"],
            f"{row['engine_mb']:.1f}",
            f"{row['logits_off']:.2g} (<= {row['logits_bound']:.2g})",
            f"{row['label_agreement']:.2%}",
            f"{row['p50_ms']:.2f}",
            f"{row['texts_per_s']:.1f}",
        ]
        for row in found["engines"]
    ]
    header = ["precision", "engine MB", "logits off by", "labels agree", "p50 ms, alone", f"texts/s, {FULL} in flight"]
    swaps = (
        f"{found['swaps']} swaps under {found['rate_per_s']:.1f} requests/s: {found['requests']} requests, {found['failed']} "
        f"failed, {found['mixed']} mixed, p99 {found['p99_ms']:.1f} ms"
    )
    return f"{markdown_table(header, rows, right=header[1:])}\n\n{swaps}"


def main(options: EngineCheck) -> None:
    """Run, print, write. Raises `Failure` when a client noticed a swap."""
    found = run(options)
    print(table(found))
    if options.output is not None:
        write_json(options.output, found)
        print(f"wrote {options.output}")
    if found["failed"] or found["mixed"]:
        raise Failure(f"clients noticed the swaps: {'; '.join(found['wrong'])}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(EngineCheck, prog="python -m tests.serving.engine_check", description=__doc__)))
