"""`--engine auto`: write every engine that this machine can run, time those that pass on real texts, keep the fastest.

"Fastest" is the least median time for the same held-out texts, one by one and then in batches of 32, over alternating rounds:
half latency, half throughput. The table of all candidates is printed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders.engine_record import EngineRecord
from builders.engines import EngineKind, Source, write_cpu_engine
from builders.parity import Int32, Reference
from builders.served import open_served, row_runner
from builders.timing import answer_all, fastest, measure_rounds
from contract.command import Failure, UsageError

ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """One engine that was tried."""

    title: str
    folder: Path
    record: EngineRecord | None
    """None where it was refused."""
    refusal: str = ""


def write_candidates(folder: Path, kinds: Sequence[EngineKind], source: Source, reference: Reference) -> list[Candidate]:
    """Write and prove each kind in a folder of its own below `folder`; what is refused is kept with the reason."""
    found = []
    for kind in kinds:
        title, place = f"{kind.engine} {kind.precision}", folder / f"{kind.engine}-{kind.precision}"
        place.mkdir()
        try:
            found.append(Candidate(title, place, write_cpu_engine(place, kind, source, reference)))
        except (Failure, UsageError) as error:
            found.append(Candidate(title, place, None, str(error)))
    return found


def time_candidates(candidates: Sequence[Candidate], rows: Sequence[Int32], *, features: int = 0) -> dict[str, list[float]]:
    """Seconds a round of each that passed, for all `rows` one by one and again in batches; `features` are read beside each."""

    def call_of(candidate: Candidate) -> Callable[[], None]:
        run = row_runner(open_served(candidate.folder), features=features)
        return lambda: answer_all(run, rows)

    return measure_rounds({candidate.title: call_of(candidate) for candidate in candidates if candidate.record}, rounds=ROUNDS)


def choose(candidates: Sequence[Candidate], seconds: dict[str, list[float]]) -> tuple[Candidate, EngineRecord]:
    """The fastest candidate that passed, and its record. Raises `Failure` when none did, with every reason."""
    for candidate in candidates:
        if candidate.record and candidate.title == fastest(seconds):
            return candidate, candidate.record
    reasons = "\n".join(f"{candidate.title}: {candidate.refusal}" for candidate in candidates)
    raise Failure(f"no engine passes the gates; no release was written\n{reasons}")


def table(candidates: Sequence[Candidate], seconds: dict[str, list[float]], *, texts: int) -> str:
    """The candidates, fastest first, as Markdown; those refused below, with the reason."""
    lines = ["| engine | ms a text, median (least to greatest) | accuracy | labels that differ |", "|---|---|---|---|"]
    passed = [candidate for candidate in candidates if candidate.record]
    for candidate in sorted(passed, key=lambda one: statistics.median(seconds[one.title])):
        each = [1000 * value / texts for value in seconds[candidate.title]]
        record = candidate.record
        accuracy = f"{record.accuracy['engine']:.2%}" if record and record.accuracy else "-"
        flips = f"{record.parity['flips']:.2%}" if record else "-"
        lines.append(
            f"| {candidate.title} | {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f}) | {accuracy} | {flips} |"
        )
    lines += [f"refused: {one.title}: {one.refusal}" for one in candidates if not one.record]
    return "\n".join(lines)
