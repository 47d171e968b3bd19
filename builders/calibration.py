"""Texts to calibrate a quantised engine on: of the training part only, so that the held-out rows stay unseen.

A checkpoint does not hold its training texts. They are read again from where the run read them, dealt out by the same seed,
and compared with the hash in `run.json`; where the data is no longer there, a file of texts can be given instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract.command import UsageError
from training.assemble import read_again
from training.checkpoint import Checkpoint
from training.readers import read_texts
from training.split import spread_rows


@dataclass(frozen=True)
class Calibration:
    """What a quantised engine is calibrated on and what chooses its details."""

    texts: list[str]
    """Training texts, on which ranges are observed."""
    validation: list[str]
    """Texts of the validation part, on which settings are compared."""
    labels: list[int]
    """Classes of `validation`; empty where they are not known."""
    origin: str
    """Where the texts are from, for the report."""


def read_calibration(checkpoint: Checkpoint, file: Path | None, *, rows: int) -> Calibration:
    """At most `rows` texts of each part.

    Raises:
        UsageError: a file without texts, or data that is no longer what the run was trained on.
    """
    if file is not None:
        texts = read_texts(file)
        if len(texts) < 2:
            raise UsageError(f"--calibration-texts {file} holds {len(texts)} text(s); at least 2 are needed, better 256")
        half = min(rows, len(texts) // 2)
        return Calibration(texts[:half], texts[half : 2 * half], [], str(file))
    try:
        _, dataset, split = read_again(checkpoint.run)
    except UsageError as error:
        raise UsageError(f"{error}; int8 is calibrated on such texts: pass some by --calibration-texts FILE") from error
    train, validation = split.train[:rows], spread_rows(split.validation, rows)
    return Calibration(
        [dataset.texts[row] for row in train],
        [dataset.texts[row] for row in validation],
        [dataset.labels[row] for row in validation],
        f"the training part of {dataset.name}",
    )
