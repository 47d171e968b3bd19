"""Texts that nobody has labelled, as a data set: under the labels that a checkpoint gives them, beside its held-out rows."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contract.command import UsageError
from training.batches import encode
from training.checkpoint import Checkpoint, heldout_rows
from training.datasets import Dataset, group_of
from training.evaluation import compute_logits
from training.readers import read_texts
from training.split import Split


def fresh_texts(texts: Iterable[str], held: Iterable[dict[str, Any]]) -> list[str]:
    """Each of the texts once, without those of held-out rows."""
    fresh = {group_of(text): text for text in texts}
    for row in held:
        fresh.pop(group_of(row["text"]), None)
    return list(fresh.values())


def read_unlabelled(
    file: Path, checkpoint: Checkpoint, *, validation_share: float, tokens_per_batch: int, seed: int
) -> tuple[Dataset, Split]:
    """The texts of a file, dealt out to training and validation, and the held-out rows of the checkpoint as the test part.

    Raises:
        UsageError: fewer than two texts that are not held out; a held-out label that the model does not know.
    """
    held = heldout_rows(checkpoint.folder, sys.maxsize)
    classes = checkpoint.classes_of(held)  # before the minutes that the answers may take
    texts = fresh_texts(read_texts(file), held)  # what is held out is never trained on
    if len(texts) < 2:
        raise UsageError(f"{file} has {len(texts)} text(s) that are not held out; at least 2 are needed, better 2000")
    random.Random(seed).shuffle(texts)
    logits = compute_logits(checkpoint.model, encode(checkpoint.tokenizer, texts, []), tokens_per_batch=tokens_per_batch)
    labels = [*logits.argmax(1).tolist(), *classes]
    rows = [*texts, *(row["text"] for row in held)]
    count = max(1, round(validation_share * len(texts)))
    numbers = list(range(len(rows)))
    split = Split(numbers[count : len(texts)], numbers[:count], numbers[len(texts) :])
    return Dataset(file.name.split(".")[0], rows, labels, checkpoint.labels, rows), split
