"""What enters each linear layer: the ranges that int8 and fp8 plans are quantised with.

    python -m builders.input_ranges build/merged --precision int8 --output build/ranges.json

The texts are the training part's, never the rows that the gate judges by, which would flatter the engine. Ranges are observed
at several percentiles; the one whose quantised graph is nearest to the checkpoint on the validation part is taken. A TensorRT
build does this by itself; a file is for seeing and changing it: a layer that is taken out of it stays in FP16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from builders.calibration import Calibration, read_calibration
from builders.graph_runner import graph_engine
from builders.graph_writer import Typing
from builders.parity import answer_texts, make_reference
from builders.ranges import observe_ranges, product_inputs
from builders.standard_graph import standard_onnx
from contract.command import UsageError, run_command
from contract.files import read_json, write_json
from training.checkpoint import Checkpoint, check_certified, load_checkpoint
from training.ranges import PERCENTILES

Eight = Literal["int8", "fp8"]


@dataclass(frozen=True, kw_only=True)
class InputRanges:
    """Measure what enters each linear layer of a checkpoint."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder, of training.merge."""
    output: Path
    """JSON file to write: {layer: range}."""
    precision: Eight = "int8"
    """What the ranges are for: int8 has even steps and likes a cut, fp8 has fine ones near zero."""
    calibration_texts: Path | None = None
    """Training texts, .jsonl or .csv with a "text" or one a line, where the data of training is gone."""
    calibration_rows: int = 256
    """Texts to observe, and as many that choose the percentile, at least 2."""

    def __post_init__(self) -> None:
        if self.calibration_rows < 2:
            raise UsageError(f"--calibration-rows is {self.calibration_rows}; it must be at least 2")


@dataclass(frozen=True)
class Observed:
    """The ranges that were taken, and the mean error of a logit on the validation part at each percentile."""

    ranges: dict[str, float]
    percentile: str
    errors: dict[str, float]


def choose_ranges(checkpoint: Checkpoint, precision: str, calibration: Calibration) -> Observed:
    """Observe, quantise at every percentile, and take the nearest. Raises UsageError when there are no texts."""
    if not calibration.texts or not calibration.validation:
        raise UsageError(
            f"{precision} is calibrated on texts, and there are none; pass training texts by --calibration-texts FILE"
        )
    exact = standard_onnx(checkpoint.model)
    seen = make_reference(checkpoint.model, calibration.encode(checkpoint.tokenizer))
    judge = make_reference(checkpoint.model, calibration.encode_validation(checkpoint.tokenizer))
    products = product_inputs(exact)
    candidates = {
        name: {node.removesuffix(".matmul"): max(abs(limit) for limit in found[tensor]) for node, tensor in products.items()}
        for name, found in observe_ranges(exact, [inputs for _, inputs in seen.batches]).items()
    }
    errors = {}
    for name in tqdm(PERCENTILES, desc="percentiles", mininterval=0.5):
        engine = graph_engine(standard_onnx(checkpoint.model, Typing(precision, candidates[name])))
        errors[name] = float(np.abs(answer_texts(engine, judge, title=name) - judge.logits).mean())
    best = min(errors, key=errors.__getitem__)
    return Observed(candidates[best], best, errors)


def read_ranges(path: Path) -> Mapping[str, float]:
    """What `write_ranges` wrote. Raises UsageError for a file of anything else."""
    value = read_json(path)
    if not isinstance(value, dict) or not value or not all(isinstance(number, int | float) for number in value.values()):
        raise UsageError(f"{path} holds no ranges ({{layer: number}}); python -m builders.input_ranges writes them")
    return {str(layer): float(number) for layer, number in value.items()}


def write_ranges(options: InputRanges) -> None:
    """Run the command; see the module docstring."""
    check_certified(options.checkpoint)
    checkpoint = load_checkpoint(options.checkpoint)
    calibration = read_calibration(checkpoint, options.calibration_texts, rows=options.calibration_rows)
    found = choose_ranges(checkpoint, options.precision, calibration)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, found.ranges)
    for name, error in found.errors.items():
        print(f"{name:>8} %: logits off by {error:.4g} on average" + (", taken" if name == found.percentile else ""))
    low, high = min(found.ranges.values()), max(found.ranges.values())
    print(f"{len(found.ranges)} layers, ranges from {low:.3g} to {high:.3g}, of {calibration.origin}: {options.output}")


if __name__ == "__main__":
    run_command(lambda: write_ranges(tyro.cli(InputRanges, prog="python -m builders.input_ranges", description=__doc__)))
