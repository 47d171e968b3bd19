"""The frozen beginning of a model, computed once: what the first trained layer reads, for every training text.

As long as nothing below a layer trains (and dropout is off there), the layer reads the same numbers in every epoch. They
are kept in one file, memory-mapped, in the precision of training: tokens x hidden size x 2 bytes in bf16.

Shapes: B batch, T tokens, D hidden.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training.batches import Batch, Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification
from training.evaluation import EVALUATION_FACTOR, autocast, clear_out_of_memory


class PrefixCache:
    """Hidden states behind the first `layers` layers for the rows of one `Encoded`."""

    def __init__(
        self,
        model: BertForSequenceClassification,
        encoded: Encoded,
        path: Path,
        *,
        layers: int,
        tokens_per_batch: int,
        dtype: torch.dtype,
    ) -> None:
        """Compute the hidden states into the file `path`, one forward pass through the frozen layers.

        Raises:
            OSError: the disk has no room for them.
        """
        self.layers = layers
        self._starts = [0, *itertools.accumulate(encoded.lengths)]
        width = model.config.hidden_size
        count = self._starts[-1] * width
        with path.open("wb") as file:  # a mapped file without its blocks ends the process where the disk is full
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
        self._states = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, width)  # [all tokens, D]
        self._fill(model, encoded, tokens_per_batch=tokens_per_batch, dtype=dtype)

    @torch.no_grad()
    def _fill(
        self, model: BertForSequenceClassification, encoded: Encoded, *, tokens_per_batch: int, dtype: torch.dtype
    ) -> None:
        model.eval()
        device = next(model.parameters()).device
        batches = plan_batches(encoded.lengths, tokens_per_batch=tokens_per_batch * EVALUATION_FACTOR, shuffle_seed=None)
        for rows in tqdm(batches, desc=f"caching the first {self.layers} layers", unit="batches", mininterval=0.5):
            batch = collate(encoded, rows, pad_token_id=model.config.pad_token_id).to(device)
            with clear_out_of_memory(batch), autocast(device, dtype):
                hidden = model.bert.prefix(batch.input_ids, batch.attention_mask, self.layers).cpu()
            for row, states in zip(rows, hidden, strict=True):
                start, end = self._starts[row], self._starts[row + 1]
                self._states[start:end] = states[: end - start]

    def read(self, batch: Batch) -> Tensor:
        """The hidden states of a batch, [B, T, D], zero where it is padded."""
        hidden = self._states.new_zeros(*batch.input_ids.shape, self._states.shape[1])
        for place, row in enumerate(batch.rows):
            start, end = self._starts[row], self._starts[row + 1]
            hidden[place, : end - start] = self._states[start:end]
        return hidden.to(batch.input_ids.device)
