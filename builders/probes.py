"""Probe texts with the checkpoint's own logits, which go into the release (`contract.probes`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contract.command import UsageError
from contract.probes import Probes
from contract.tensors import MAX_TEXT_BYTES
from training.checkpoint import Checkpoint
from training.evaluation import compute_logits

PROBE_COUNT = 32

ROUNDING = 1e-3
"""Logit difference that is allowed to every engine: another processor and another batch shape round differently."""

LABEL_SLACK = 0.05
"""Share of labels, beyond those that the engine itself got wrong when it was built, that may differ."""


def make_probes(checkpoint: Checkpoint, rows: Sequence[dict[str, Any]], parity: dict[str, Any]) -> Probes:
    """Probes out of held-out `rows`, {"text"} and "features" where the model reads them, short and long texts alike.

    The bound follows from `parity`, what was measured of this engine at build time: twice its largest difference from the
    checkpoint, so that a quantised engine is held to what it showed, and an exact one to rounding.

    Raises:
        UsageError: no text that a server would take.
    """
    usable = {row["text"]: row for row in rows if row["text"].strip() and len(row["text"].encode()) <= MAX_TEXT_BYTES}
    if not usable:
        raise UsageError(f"none of the {len(rows)} held-out texts can be served, all are blank or too long; train on others")
    ordered = sorted(usable, key=lambda text: (len(text), text))  # the same in every build
    count = min(PROBE_COUNT, len(ordered))
    chosen = [usable[ordered[round(number * (len(ordered) - 1) / max(count - 1, 1))]] for number in range(count)]
    logits = compute_logits(checkpoint.model, checkpoint.encode(chosen), tokens_per_batch=4096)
    return Probes(
        texts=[row["text"] for row in chosen],
        features=[row["features"] for row in chosen] if checkpoint.model.config.num_features else [],
        logits=logits.tolist(),
        bound=max(ROUNDING, 2 * float(parity["max_abs"])),
        agreement=max(0.0, float(parity["label_agreement"]) - LABEL_SLACK),
    )
