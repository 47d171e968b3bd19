"""What a checkpoint of `training.quantize_aware` has beside the usual files: the int8 that its weights were trained for.

int8.json               the range of each linear layer's input, how it was chosen, and the sha256 of the weights
int8_validation.jsonl   the validation part: one {"text", "label", "fp32", "static"} a line, the logits of the fp32 model and of
                        its static int8, both as they were before the training; "label" is null where nobody knows it

`builders.build --precision int8` quantises with these ranges instead of calibrating, and judges by these rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json, read_json_lines, sha256_of, write_json, write_json_lines
from training.pretrained import WEIGHTS_FILE
from training.ranges import Range

INT8_FILE = "int8.json"
ROWS_FILE = "int8_validation.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainedInt8:
    """The int8 that a checkpoint was trained for."""

    ranges: dict[str, Range]
    """Of what enters each linear layer, by the layer's path."""
    percentile: str
    """Which of `training.ranges.PERCENTILES` they are."""
    origin: str
    """Where the texts are from, for people."""
    calibration_texts: int
    trained_texts: int
    epoch: int
    """The one whose weights were kept, from 1; 0 where none was better than static int8, whose weights these then are."""
    distillation: float
    """Share of the fp32 model's own probabilities in what the loss was taken against; the labels are the rest."""


@dataclass(frozen=True)
class Validation:
    """The validation part, answered before the training; row i is `texts[i]`."""

    texts: list[str]
    labels: list[int]
    """Classes; empty where they are not known."""
    fp32: list[list[float]]
    """Logits of the model that was to be quantised."""
    static: list[list[float]]
    """Logits of its static int8, with the same ranges."""


def write_trained(folder: Path, trained: TrainedInt8, validation: Validation, names: Sequence[str]) -> None:
    """Write both files beside the weights; `names` are those of the classes."""
    facts = dataclasses.asdict(trained) | {"weights_sha256": sha256_of(folder / WEIGHTS_FILE)}
    write_json(folder / INT8_FILE, facts)
    labels: Sequence[str | None] = [names[label] for label in validation.labels] or [None] * len(validation.texts)
    rows = zip(validation.texts, labels, validation.fp32, validation.static, strict=True)
    write_json_lines(
        folder / ROWS_FILE,
        ({"text": text, "label": label, "fp32": fp32, "static": static} for text, label, fp32, static in rows),
    )


def read_trained(folder: Path) -> TrainedInt8 | None:
    """What a checkpoint's weights were trained for; None for a checkpoint of any other command.

    Raises:
        UsageError: a file that is damaged, or that belongs to other weights.
    """
    path = folder / INT8_FILE
    if not path.exists():
        return None
    facts = read_json(path)
    try:
        digest = facts.pop("weights_sha256")
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in facts.pop("ranges").items()}
        trained = TrainedInt8(ranges=ranges, **facts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} holds no trained ranges ({error!r}); run training.quantize_aware again") from error
    broken = [name for name, (low, high) in ranges.items() if not -math.inf < low <= 0 <= high < math.inf]
    if broken or not ranges:
        raise UsageError(f"{path}: the range of {(broken or ['any layer'])[0]} is none; run training.quantize_aware again")
    if digest != sha256_of(folder / WEIGHTS_FILE):
        raise UsageError(f"{path} belongs to other weights than {folder / WEIGHTS_FILE}; run training.quantize_aware again")
    return trained


def read_validation(folder: Path, names: Sequence[str]) -> Validation:
    """The validation part of a checkpoint whose `read_trained` is not None.

    Raises:
        UsageError: a file that is missing, damaged or empty.
    """
    path, classes = folder / ROWS_FILE, {name: number for number, name in enumerate(names)}
    rows: list[Any] = list(read_json_lines(path))
    try:
        found = Validation(
            [str(row["text"]) for row in rows],
            [classes[row["label"]] for row in rows if row["label"] is not None],
            [[float(logit) for logit in row["fp32"]] for row in rows],
            [[float(logit) for logit in row["static"]] for row in rows],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error!r}); run training.quantize_aware again") from error
    widths = {len(logits) for logits in (*found.fp32, *found.static)}
    if widths != {len(names)} or len(found.labels) not in {0, len(rows)}:
        raise UsageError(
            f"{path} is damaged: its rows do not have a logit for each of {len(names)} classes, or not all a label"
        )
    return found
