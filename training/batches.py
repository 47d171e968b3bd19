"""Encoded texts, and batches of them: bucketed by length under a token budget, so that little is padding.

Shapes: B batch, T tokens, N numeric features, C classes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

_ENCODE_CHUNK = 512
_SORT_WINDOW = 64  # batches whose texts are sorted together: long enough for little padding, short enough to stay random


@dataclass(frozen=True)
class Encoded:
    """Token ids of some texts and, where they are labelled, their classes."""

    ids: list[list[int]]
    labels: list[int]
    truncated: list[bool]
    features: Tensor | None = None
    """Raw numbers beside each text, fp32 [rows, N]."""
    targets: Tensor | None = None
    """What the loss is taken against where it is not the labels: a probability for each class, fp32 [rows, C]."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text, special tokens included."""
        return [len(row) for row in self.ids]


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass. `attention_mask` is None when no row is padded."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor | None  # [B, T] int64
    labels: Tensor  # [B] int64
    rows: list[int]
    """Where the rows stand in the `Encoded` they come from."""
    features: Tensor | None = None  # [B, N] fp32
    targets: Tensor | None = None  # [B, C] fp32, where the loss is not taken against the labels

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        given = (self.attention_mask, self.features, self.targets)
        mask, features, targets = (None if part is None else part.to(device) for part in given)
        return Batch(self.input_ids.to(device), mask, self.labels.to(device), self.rows, features, targets)


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    features: Sequence[Sequence[float]] | None = None,
    progress: str = "",
) -> Encoded:
    """Tokenize `texts`; `features` are numbers beside each; `progress` names a progress bar, "" shows none."""
    ids: list[list[int]] = []
    truncated: list[bool] = []
    starts = range(0, len(texts), _ENCODE_CHUNK)
    for start in tqdm(starts, desc=progress, unit="chunks", disable=not progress, mininterval=0.5):
        for encoding in tokenizer.encode_batch(list(texts[start : start + _ENCODE_CHUNK])):
            ids.append(encoding.ids)
            truncated.append(bool(encoding.overflowing))
    numbers = None if features is None else torch.tensor(features, dtype=torch.float32)
    return Encoded(ids, list(labels), truncated, numbers)


def plan_batches(
    lengths: Sequence[int], *, tokens_per_batch: int, shuffle_seed: int | None, batch_rows: int | None = None
) -> list[list[int]]:
    """Row numbers of each batch: rows x longest row <= `tokens_per_batch`, at most `batch_rows`, every row exactly once.

    With a seed the order is random and lengths are sorted only within windows of batches; None sorts everything, which
    pads least and suits evaluation. A text longer than the budget gets a batch of its own.
    """
    order = list(range(len(lengths)))
    if shuffle_seed is None:
        return _cut(sorted(order, key=lengths.__getitem__), lengths, tokens_per_batch, batch_rows)
    generator = random.Random(shuffle_seed)
    generator.shuffle(order)
    mean = max(1, sum(lengths) // max(1, len(lengths)))
    window = max(1, min(tokens_per_batch // mean, batch_rows or len(order))) * _SORT_WINDOW
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        batches += _cut(sorted(order[start : start + window], key=lengths.__getitem__), lengths, tokens_per_batch, batch_rows)
    generator.shuffle(batches)
    return batches


def _cut(order: Iterable[int], lengths: Sequence[int], tokens_per_batch: int, batch_rows: int | None) -> list[list[int]]:
    """Cut rows, sorted by rising length, into batches within the budgets."""
    batches: list[list[int]] = []
    for row in order:
        wanted = len(batches[-1]) + 1 if batches else 0
        if wanted and wanted * lengths[row] <= tokens_per_batch and wanted <= (batch_rows or wanted):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(encoded: Encoded, rows: list[int], *, pad_token_id: int) -> Batch:
    """The rows padded on the right to their longest."""
    longest = max(len(encoded.ids[row]) for row in rows)
    padded = [encoded.ids[row] + [pad_token_id] * (longest - len(encoded.ids[row])) for row in rows]
    mask = [[1] * len(encoded.ids[row]) + [0] * (longest - len(encoded.ids[row])) for row in rows]
    ragged = any(len(encoded.ids[row]) < longest for row in rows)
    return Batch(
        torch.tensor(padded),
        torch.tensor(mask) if ragged else None,
        torch.tensor([encoded.labels[row] for row in rows]) if encoded.labels else torch.empty(0, dtype=torch.int64),
        rows,
        None if encoded.features is None else encoded.features[rows],
        None if encoded.targets is None else encoded.targets[rows],
    )
