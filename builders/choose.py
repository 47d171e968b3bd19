"""`--engine auto`: write every engine that this machine can run, time them on real texts, and take the fastest that passes.

"Fastest" is the least median time for the same held-out texts, one by one and then in batches of 32, over alternating rounds:
half latency, half throughput. What is hopelessly slow after two rounds is not timed further, and only the fastest is proved:
when it fails its gates, the next fastest is.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders.engine_record import EngineRecord
from builders.engines import EngineKind, Source, prove_files, write_files
from builders.parity import Int32, Reference
from builders.served import open_served, row_runner
from builders.timing import BATCH_SIZES, answer_all, measure_rounds
from contract.command import Failure, UsageError

ROUNDS = 5
HOPELESS = 1.2
"""An engine whose best round is so many times the fastest one's worst is timed no further."""


@dataclass
class Candidate:
    """One engine that was tried."""

    kind: EngineKind
    folder: Path
    seconds: list[float] = field(default_factory=list)
    """Of each round: all texts, one by one and again in batches; empty where it could not be written."""
    refusal: str = ""
    """Why it could not be written, or why its proof failed."""
    record: EngineRecord | None = None
    """Of the one that was proved and passed."""


def write_fastest(
    folder: Path, kinds: Sequence[EngineKind], source: Source, *, rows: Sequence[Int32], reference: Callable[[], Reference]
) -> EngineRecord:
    """Fill `folder` with the fastest engine that passes, and print how it was chosen.

    Args:
        rows: unpadded token ids that are timed.
        reference: what the engine has to equal; called when the first engine is proved.

    Raises:
        Failure: none passes, with every reason; `folder` is left as it was.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".candidates-") as scratch:
        candidates = write_candidates(Path(scratch), kinds, source)
        written = [one for one in candidates if not one.refusal]
        if not written:
            raise Failure(_reasons(candidates))
        texts = f"{len(rows)} held-out texts, one by one and {BATCH_SIZES[-1]} at a time"
        print(f"timing {len(written)} engines on {texts}, the slow ones less often than {ROUNDS} times", flush=True)
        time_candidates(written, rows, features=source.model.config.num_features)
        chosen, record = prove_fastest(candidates, reference)
        print(table(candidates, texts=len(BATCH_SIZES) * len(rows)))
        print(f"{chosen.kind.title} is the fastest that passes, found in {time.perf_counter() - started:.0f} s")
        shutil.copytree(chosen.folder, folder, dirs_exist_ok=True)
    return record


def write_candidates(folder: Path, kinds: Sequence[EngineKind], source: Source) -> list[Candidate]:
    """Write each kind into a folder of its own below `folder`; what cannot be written is kept with the reason."""
    found = []
    for number, kind in enumerate(kinds, 1):
        candidate, started = Candidate(kind, folder / f"{kind.engine}-{kind.precision}"), time.perf_counter()
        candidate.folder.mkdir()
        print(f"engine {number} of {len(kinds)}: {kind.title}", flush=True)
        try:
            write_files(candidate.folder, kind, source)
            print(f"  written in {time.perf_counter() - started:.1f} s", flush=True)
        except (Failure, UsageError) as error:
            candidate.refusal = str(error)
            print(f"  not written: {error}", flush=True)
        found.append(candidate)
    return found


def time_candidates(candidates: Sequence[Candidate], rows: Sequence[Int32], *, features: int) -> None:
    """Fill in the `seconds` of each; it reads so many `features` beside each row."""

    def call_of(candidate: Candidate) -> Callable[[], None]:
        run = row_runner(open_served(candidate.folder), features=features)
        return lambda: answer_all(run, rows)

    calls = {one.kind.title: call_of(one) for one in candidates}
    seconds = measure_rounds(calls, rounds=ROUNDS, hopeless=HOPELESS)
    for one in candidates:
        one.seconds = seconds[one.kind.title]


def prove_fastest(candidates: Sequence[Candidate], reference: Callable[[], Reference]) -> tuple[Candidate, EngineRecord]:
    """Prove from the fastest on until one passes; it, and its record. Raises `Failure` when none does, with every reason."""
    timed = [one for one in candidates if one.seconds]
    for candidate in sorted(timed, key=lambda one: statistics.median(one.seconds)):
        candidate.record, failures = prove_files(candidate.folder, candidate.kind, reference())
        if not failures:
            return candidate, candidate.record
        candidate.refusal = "; ".join(failures)
    raise Failure(_reasons(candidates))


def _reasons(candidates: Sequence[Candidate]) -> str:
    lines = [f"{one.kind.title}: {one.refusal}" for one in candidates]
    return "\n".join(["no engine passes the gates; no release was written", *lines])


def table(candidates: Sequence[Candidate], *, texts: int) -> str:
    """The candidates that were timed, fastest first, as Markdown; those that were not written below, with the reason."""
    lines = ["| engine | ms a text, median (least to greatest) | rounds | over the slowest | proof |", "|---|---|---|---|---|"]
    medians = {one.kind.title: statistics.median(one.seconds) for one in candidates if one.seconds}
    for one in sorted((one for one in candidates if one.seconds), key=lambda one: medians[one.kind.title]):
        median, least, most = (1000 * value / texts for value in (medians[one.kind.title], min(one.seconds), max(one.seconds)))
        gain = max(medians.values()) / medians[one.kind.title]
        cells = (
            f"{one.kind.title} | {median:.2f} ({least:.2f} to {most:.2f}) | {len(one.seconds)} | {gain:.2f}x | {_proof(one)}"
        )
        lines.append(f"| {cells} |")
    return "\n".join([*lines, *(f"not written: {one.kind.title}: {one.refusal}" for one in candidates if not one.seconds)])


def _proof(candidate: Candidate) -> str:
    if candidate.refusal:
        return f"fails: {candidate.refusal}"
    if candidate.record is None:
        return "slower, not needed"
    accuracy: Mapping[str, float] = candidate.record.accuracy
    flips = f"{candidate.record.parity['flips']:.2%} other labels"
    return f"passes: accuracy {accuracy['engine']:.2%}, {flips}" if accuracy else f"passes: {flips}"
