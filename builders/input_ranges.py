"""Measure what enters each linear layer: the ranges that int8 and fp8 plans are quantised with.

    python -m builders.input_ranges build/merged --texts train.txt --output build/ranges.json

The texts must be training texts: ranges taken from the rows that the gate judges by would flatter the engine. The range is the
largest magnitude, which loses nothing to clipping; fp8 wants that, int8 often does better below it, so `--percentile` cuts the
few largest, and a layer that is not in the file stays in FP16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from builders.plan_lengths import read_texts
from contract.command import UsageError, run_command
from contract.files import read_json, write_json
from training.batches import Encoded, collate, encode, plan_batches
from training.bert import BertForSequenceClassification
from training.checkpoint import load_checkpoint

TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, kw_only=True)
class InputRanges:
    """Measure what enters each linear layer of a checkpoint."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder, of training.merge."""
    texts: Path
    """Training texts: one a line, or .jsonl rows with a "text"."""
    output: Path
    """JSON file to write: {layer: range}."""
    rows: int = 512
    """Texts to use, from the beginning of the file, at least 1."""
    percentile: float = 100.0
    """Share of each batch's numbers that the range holds, percent, above 50; the largest batch decides."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UsageError(f"--rows is {self.rows}; it must be at least 1")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"--percentile is {self.percentile}; it must be above 50 and at most 100")


@torch.inference_mode()
def measure_ranges(model: BertForSequenceClassification, texts: Encoded, *, percentile: float = 100.0) -> dict[str, float]:
    """The range of what enters each linear layer of the encoder, by module path; padding does not count."""
    ranges: dict[str, float] = {}
    seen: dict[str, Any] = {}

    def note(path: str, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        given = inputs[0]  # [B, Q, in]; Q is 1 for the last layer's first token
        mask = seen["mask"]
        real = given if mask is None or given.shape[1] != mask.shape[1] else given[mask != 0]
        magnitudes = real.abs().float().numpy().ravel()
        found = float(magnitudes.max() if percentile == 100 else np.percentile(magnitudes, percentile))
        ranges[path] = max(ranges.get(path, 0.0), found)

    linears = {path: module for path, module in model.bert.encoder.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = [module.register_forward_pre_hook(partial(note, f"bert.encoder.{path}")) for path, module in linears.items()]
    try:
        plan = plan_batches(texts.lengths, tokens_per_batch=TOKENS_PER_BATCH, shuffle_seed=None)
        for rows in tqdm(plan, desc="calibrating", unit="batches", mininterval=0.5):
            batch = collate(texts, rows, pad_token_id=model.config.pad_token_id)
            seen["mask"] = batch.attention_mask
            model(batch.input_ids, batch.attention_mask)
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


def read_ranges(path: Path) -> Mapping[str, float]:
    """What `write_ranges` wrote. Raises UsageError for a file of anything else."""
    value = read_json(path)
    if not isinstance(value, dict) or not value or not all(isinstance(number, int | float) for number in value.values()):
        raise UsageError(f"{path} holds no ranges ({{layer: number}}); python -m builders.input_ranges writes them")
    return {str(layer): float(number) for layer, number in value.items()}


def write_ranges(options: InputRanges) -> None:
    """Run the command; see the module docstring."""
    checkpoint = load_checkpoint(options.checkpoint)
    texts = read_texts(options.texts)[: options.rows]
    ranges = measure_ranges(checkpoint.model, encode(checkpoint.tokenizer, texts, []), percentile=options.percentile)
    write_json(options.output, ranges)
    low, high = min(ranges.values()), max(ranges.values())
    print(f"{len(ranges)} layers over {len(texts)} texts, ranges from {low:.3g} to {high:.3g}: {options.output}")


if __name__ == "__main__":
    run_command(lambda: write_ranges(tyro.cli(InputRanges, prog="python -m builders.input_ranges", description=__doc__)))
