"""Texts to calibrate a quantised engine on: of the training part only, so that the held-out rows stay unseen.

A checkpoint does not hold its training texts. They are read again from where the run read them, dealt out by the same seed,
and compared with the hash in `run.json`; where the data is no longer there, a file of texts can be given instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from contract.command import UsageError
from contract.files import read_json_lines
from training.assemble import read_data, split_data
from training.batches import Encoded, encode
from training.checkpoint import Checkpoint
from training.datasets import Dataset
from training.options import Finetune
from training.readers import read_columns
from training.split import hash_rows


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
        """The first `rows` of `validation`, or all of them, as the model's input."""
        features = self.validation_features[:rows] or None
        return encode(tokenizer, self.validation[:rows], self.labels[:rows], features=features)


def read_calibration(checkpoint: Checkpoint, file: Path | None, *, rows: int) -> Calibration:
    """At most `rows` texts of each part.

    Raises:
        UsageError: a file without texts, or data that is no longer what the run was trained on.
    """
    if file is not None:
        if checkpoint.model.config.num_features:
            raise UsageError(
                f"--calibration-texts {file} holds texts alone, and {checkpoint.folder} reads numbers beside them; "
                "put the data of training back where it was, or use another precision"
            )
        texts = read_texts(file)
        if len(texts) < 2:
            raise UsageError(f"--calibration-texts {file} holds {len(texts)} text(s); at least 2 are needed, better 256")
        half = min(rows, len(texts) // 2)
        return Calibration(texts[:half], texts[half : 2 * half], [], str(file))
    options = _options_of(checkpoint.run)
    dataset = _dataset_of(options)
    split = split_data(options, dataset)
    wanted = checkpoint.run["data"]["parts"]["train"]["sha256"]
    if hash_rows(dataset, split.train) != wanted:
        raise UsageError(
            f"the data of {checkpoint.folder} has changed since it was trained (its training part has another sha256); "
            "pass texts like those of training by --calibration-texts FILE"
        )
    train, validation = split.train[:rows], split.validation[:rows]
    return Calibration(
        [dataset.texts[row] for row in train],
        [dataset.texts[row] for row in validation],
        [dataset.labels[row] for row in validation],
        f"the training part of {dataset.name}",
        *([dataset.features[row] for row in part] if options.tabular else [] for part in (train, validation)),
    )


def read_texts(file: Path) -> list[str]:
    """The texts of a .jsonl ("text" of each line), a .csv (its column "text") or any other file (one a line), blanks left out.

    Raises:
        UsageError: a missing file, or one that is not what its name says.
    """
    try:
        if file.suffix == ".jsonl":
            texts = [row["text"] for row in read_json_lines(file)]
        elif file.suffix == ".csv":
            texts = [text for (text,) in read_columns(file, ["text"])]
        else:
            texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the texts of {file}: {error}") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f'{file} must have a "text" in every line') from error
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f'{file}: every "text" must be a string')
    return [text for text in texts if text.strip()]


def _options_of(run: dict[str, Any]) -> Finetune:
    """The run's options, with its device replaced: what it was trained on need not be here."""
    values = run["configuration"] | {"device": "cpu"}
    paths = {name: Path(values[name]) for name in ("output", "data") if values.get(name)}
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Finetune(**(values | paths | tuples))


def _dataset_of(options: Finetune) -> Dataset:
    try:
        return read_data(options)
    except UsageError as error:
        raise UsageError(
            f"the texts that the checkpoint was trained on cannot be read again ({error}); "
            "int8 is calibrated on such texts: pass some by --calibration-texts FILE"
        ) from error
