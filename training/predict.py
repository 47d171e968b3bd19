"""The checkpoint's own answers, without any server: what a served answer is compared with.

    python -m training.predict build/merged --output build/predictions.jsonl --limit 1000

Writes one line a text: {"text", "label", "logits", "truncated"}, in fp32; `label` is the predicted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import UsageError, run_command
from contract.files import read_json_lines, write_json_lines
from training.checkpoint import HELDOUT_FILE, load_checkpoint
from training.evaluation import compute_logits
from training.readers import check_characters


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify texts with a checkpoint, without a server."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder, merged or not."""
    output: Path
    """JSON-lines file to write."""
    texts: Path | None = None
    """JSON lines with a "text" each, and "features" where the model reads them; the held-out part when left out."""
    limit: int | None = None
    """Only the first so many texts."""
    tokens_per_batch: int = 8192
    """Budget of one batch: texts x longest text."""

    def __post_init__(self) -> None:
        for name, number in (("limit", self.limit), ("tokens-per-batch", self.tokens_per_batch)):
            if number is not None and number < 1:
                raise UsageError(f"--{name} is {number}; it must be at least 1")


def predict(options: Predict) -> None:
    """Run the command; see the module docstring."""
    checkpoint = load_checkpoint(options.checkpoint)
    source = options.texts or options.checkpoint / HELDOUT_FILE
    rows = list(islice(read_json_lines(source), options.limit))
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("text"), str) for row in rows):
        raise UsageError(f'{source} must hold at least one line, each a JSON object with a "text"')
    check_characters(source, (row["text"] for row in rows))
    encoded = checkpoint.encode(rows)
    logits = compute_logits(checkpoint.model, encoded, tokens_per_batch=options.tokens_per_batch, progress="predicting")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(
        options.output,
        (
            {
                "text": row["text"],
                "label": checkpoint.labels[int(scores.argmax())],
                "logits": scores.tolist(),
                "truncated": cut,
            }
            for row, scores, cut in zip(rows, logits, encoded.truncated, strict=True)
        ),
    )
    print(f"wrote the answers to {len(rows)} texts: {options.output}")


if __name__ == "__main__":
    run_command(lambda: predict(tyro.cli(Predict, prog="python -m training.predict", description=__doc__)))
