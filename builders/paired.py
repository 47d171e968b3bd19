"""Releases of one checkpoint on the same labelled rows, paired: what does int8 cost, beyond chance?

    python -m builders.paired build/merged --releases build/fp32 build/int8 --output docs/measurements/int8.json

The rows are the checkpoint's held-out ones, which it was never trained or chosen on. Each release answers them by its engine as
it is served; every other one is compared with the first. Answers are kept in --work, a file for every few hundred rows, so
that a run that is interrupted goes on where it was. Nothing is timed: other work on the machine does no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from builders.accuracy import ALLOWED_DROP, compare_accuracy
from builders.hardware import describe_cpu
from builders.parity import BOUNDS, Float32, Int32, margins
from builders.served import open_served, row_runner
from contract.command import UsageError, run_command
from contract.files import whole_file, write_json
from contract.release import Manifest, read_manifest
from contract.tensors import ENGINE
from training.checkpoint import Checkpoint, check_certified, heldout_rows, load_checkpoint

CHUNK = 256
"""Rows that are answered between two files."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Compare releases of one checkpoint on the same labelled rows."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder that the releases were built out of."""
    releases: tuple[Path, ...]
    """Release folders, at least two, with engines for a CPU; the others are compared with the first."""
    output: Path
    """JSON file to write."""
    rows: int = 5000
    """Held-out rows, at least 1; on 5000 a difference of 0.3 points shows."""
    work: Path = Path("build/paired")
    """Folder in which the answers are kept."""

    def __post_init__(self) -> None:
        if len(self.releases) < 2 or len(set(self.releases)) < len(self.releases):
            raise UsageError(f"--releases is {' '.join(map(str, self.releases))}; name two folders or more, each once")
        if self.rows < 1:
            raise UsageError(f"--rows is {self.rows}; it must be at least 1")


def read_release(folder: Path, checkpoint_sha256: str) -> Manifest:
    """A release that can be compared here. Raises UsageError for another checkpoint's, or an engine that needs a GPU."""
    manifest = read_manifest(folder)
    if manifest.checkpoint_sha256 != checkpoint_sha256:
        raise UsageError(f"{folder} was built out of another checkpoint; build it again out of this one")
    if manifest.features:
        raise UsageError(f"{folder} reads numbers beside the text; releases that read text alone are compared here")
    if manifest.kind == "tensorrt":
        raise UsageError(f"{folder} holds a TensorRT plan; engines for a CPU are compared here")
    return manifest


def answer(folder: Path, rows: Sequence[Int32], work: Path, title: str) -> Float32:
    """Logits [R, C] of the release's engine; what `work` holds already is not computed again."""
    work.mkdir(parents=True, exist_ok=True)
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))  # little padding in a chunk
    parts, run = [], None
    for start in tqdm(range(0, len(rows), CHUNK), desc=title, unit="chunks", mininterval=0.5):
        path = work / f"{start}.npy"
        if not path.exists():
            run = run or row_runner(open_served(folder / ENGINE))
            logits = np.stack(run([rows[row] for row in order[start : start + CHUNK]]))
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, logits)
        parts.append(np.load(path))
    found: Float32 = np.empty_like(np.concatenate(parts))
    found[order] = np.concatenate(parts)
    return found


def compare(logits: Float32, first: Float32, labels: Sequence[int], precision: str) -> dict[str, Any]:
    """The figures of one release beside the first one's."""
    found = compare_accuracy(logits, first, labels)
    differs = logits.argmax(1) != first.argmax(1)
    near = margins(first) <= BOUNDS[precision].tie
    return {
        "accuracy": found.engine,
        "points": 100 * (found.won - found.lost) / found.rows,
        "noise_points": 100 * found.noise,
        "lost": found.lost,
        "won": found.won,
        "p_value": found.p_value,
        "flips": found.flips / found.rows,
        "flips_of_ties": float((differs & near).mean()),
        "mean_logit_error": float(np.abs(logits - first).mean()),
        "passes": 100 * (found.lost - found.won) / found.rows <= 100 * ALLOWED_DROP,
    }


def describe(measured: dict[str, Any]) -> str:
    """The figures for people, a line a release."""
    first = measured["first"]
    lines = [f"{measured['rows']} held-out rows of {measured['data']}; {first['engine']}: accuracy {first['accuracy']:.2%}"]
    for name, found in measured["releases"].items():
        lines.append(
            f"{name}: accuracy {found['accuracy']:.2%} ({found['points']:+.2f} points, noise {found['noise_points']:.2f}, "
            f"McNemar p {found['p_value']:.3g}; {found['lost']} lost, {found['won']} won); {found['flips']:.2%} other labels, "
            f"{found['flips_of_ties']:.2%} of the rows by a tie"
        )
    return "\n".join(lines)


def paired(options: Paired) -> None:
    """Run the command; see the module docstring."""
    digest = check_certified(options.checkpoint)
    checkpoint = load_checkpoint(options.checkpoint)
    manifests = [read_release(folder, digest) for folder in options.releases]
    encoded = checkpoint.encode_labelled(heldout_rows(options.checkpoint, options.rows))
    rows, labels = [np.array(ids, np.int32) for ids in encoded.ids], encoded.labels
    key = hashlib.sha256(json.dumps([row.tolist() for row in rows]).encode()).hexdigest()[:12]
    answers = [
        answer(folder, rows, options.work / f"{manifest.release}-{key}", manifest.engine)
        for folder, manifest in zip(options.releases, manifests, strict=True)
    ]
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_cpu(),
        **_data(checkpoint, rows),
        "first": {"engine": manifests[0].engine, "accuracy": float((answers[0].argmax(1) == np.asarray(labels)).mean())},
        "releases": {
            manifest.engine: compare(logits, answers[0], labels, manifest.precision)
            for manifest, logits in zip(manifests[1:], answers[1:], strict=True)
        },
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, measured)
    print(f"{describe(measured)}\nwrote {options.output}")


def _data(checkpoint: Checkpoint, rows: Sequence[Int32]) -> dict[str, Any]:
    return {
        "data": checkpoint.run["data"]["name"],
        "rows": len(rows),
        "mean_tokens": float(np.mean([len(row) for row in rows])),
    }


if __name__ == "__main__":
    run_command(lambda: paired(tyro.cli(Paired, prog="python -m builders.paired", description=__doc__)))
