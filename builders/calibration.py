"""Texts to calibrate a quantised engine on: of the training part only, so that the held-out rows stay unseen.

A checkpoint does not hold its training texts. They are read again from where the run read them, dealt out by the same seed,
and compared with the hash in `run.json`; where the data is no longer there, a file of texts can be given instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from contract.command import UsageError
from training.assemble import read_again
from training.batches import Encoded, encode
from training.checkpoint import Checkpoint, read_heldout
from training.readers import read_texts
from training.split import spread_rows
from training.unlabelled import fresh_texts


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
    features: list[list[float]] = field(default_factory=list)
    """Numbers beside each of `texts`; empty where the model reads text alone."""
    validation_features: list[list[float]] = field(default_factory=list)
    """Those beside `validation`."""

    def encode(self, tokenizer: Tokenizer) -> Encoded:
        """`texts` as the model's input."""
        return encode(tokenizer, self.texts, [], features=self.features or None)

    def encode_validation(self, tokenizer: Tokenizer, rows: int | None = None) -> Encoded:
        """At most `rows` of `validation`, evenly taken, or all of them, as the model's input."""
        every = range(len(self.validation))
        chosen = list(every) if rows is None else spread_rows(every, rows)
        return encode(
            tokenizer,
            [self.validation[row] for row in chosen],
            [self.labels[row] for row in chosen] if self.labels else [],
            features=[self.validation_features[row] for row in chosen] if self.validation_features else None,
        )


def read_fresh(checkpoint: Checkpoint, file: Path) -> list[str]:
    """The texts of a file, each once, without those that are held out: the gate judges by them.

    Raises:
        UsageError: fewer than two are left, or the file is not what its name says.
    """
    given = read_texts(file)
    texts = fresh_texts(given, read_heldout(checkpoint.folder))
    if len(texts) < 2:
        raise UsageError(
            f"--calibration-texts {file} holds {len(texts)} text(s) that are not held out; at least 2 are needed, better 256"
        )
    if left_out := len(given) - len(texts):
        print(f"{file}: {left_out} of {len(given)} texts are left out, they are held out or repeat another")
    return texts


def read_calibration(checkpoint: Checkpoint, file: Path | None, *, rows: int) -> Calibration:
    """At most `rows` texts of each part.

    Raises:
        UsageError: a file of too few texts (see `read_fresh`), or data that is no longer what the run was trained on.
    """
    if file is not None:
        if checkpoint.model.config.num_features:
            raise UsageError(
                f"--calibration-texts {file} holds texts alone, and {checkpoint.folder} reads numbers beside them; "
                "put the data of training back where it was, or use another precision"
            )
        texts = spread_rows(read_fresh(checkpoint, file), 2 * rows)
        return Calibration(texts[::2], texts[1::2], [], str(file))  # both of the whole file, which may lie class by class
    try:
        options, dataset, split = read_again(checkpoint.run)
    except UsageError as error:
        raise UsageError(f"{error}; int8 is calibrated on such texts: pass some by --calibration-texts FILE") from error
    train, validation = spread_rows(split.train, rows), spread_rows(split.validation, rows)
    return Calibration(
        [dataset.texts[row] for row in train],
        [dataset.texts[row] for row in validation],
        [dataset.labels[row] for row in validation],
        f"the training part of {dataset.name}",
        *([dataset.features[row] for row in part] if options.tabular else [] for part in (train, validation)),
    )
