"""What a run of `tests.serving.chaos_swap` has found so far, on the disk, so that a long one can be done in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json, write_json
from tests.serving.timeline import longer

SUMS = ("done", "pieces", "requests", "failed", "mixed")
LISTS = ("wrong", "looks", "pss_mb", "sequential_p50_ms")


def part_file(output: Path) -> Path:
    """Where pieces are kept until the last one is done and `output` is written; hidden, as it is no measurement yet."""
    return output.with_name(f".{output.stem}.part")


def begin(path: Path | None, release: str, swaps: int) -> dict[str, Any]:
    """What earlier pieces found; nothing where there were none.

    Raises:
        UsageError: they were of another run.
    """
    new = {"release": release, "swaps": swaps, "counts": {}, "latency": {}, "slowest_rollback_s": 0.0, "timeline": []}
    new |= dict.fromkeys(SUMS, 0) | {name: [] for name in LISTS}
    if path is None or not path.exists():
        return new
    found: dict[str, Any] = read_json(path)
    if (found["release"], found["swaps"]) != (release, swaps):
        raise UsageError(
            f"{path} holds {found['done']} of {found['swaps']} swaps of {found['release']}, wanted are {swaps} of {release}: "
            "finish that run with its own --swaps and --release, or delete the file"
        )
    return found


def add(found: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """What was found before and in one more piece, of which a value may be left out."""
    counts = {kind: found["counts"].get(kind, 0) + piece["counts"].get(kind, 0) for kind in found["counts"] | piece["counts"]}
    total: dict[str, Any] = found | {"counts": counts, "latency": found["latency"] or piece["latency"]}
    total["timeline"] = longer(found["timeline"], piece["timeline"])
    total["slowest_rollback_s"] = max(found["slowest_rollback_s"], piece["slowest_rollback_s"])
    return total | {name: found[name] + piece[name] for name in (*SUMS, *LISTS)}


def save(path: Path | None, found: dict[str, Any]) -> None:
    """Keep what was found, where there is a file for it; its folder is made."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
