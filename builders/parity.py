"""One definition of "the engine equals the checkpoint": one function and one bound, for builds and tests alike.

The engine is compared with our BERT on made-up batches of shapes that nothing was tuned to, from one token to the
model's last position, with ragged and fully padded rows, and on real held-out texts.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from contract.tensors import MAX_BATCH_SIZE
from training.batches import Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Engine = Callable[[Int32, Int32], Float32]
"""(input_ids [B, T], attention_mask [B, T]) -> logits [B, C]."""

LOGIT_BOUND = 1e-4
"""Largest fp32 logit difference that passes."""

PROBE_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Parity:
    """What was compared and how far apart it was."""

    shapes: list[tuple[int, int]]
    """(B, T) of the made-up batches."""
    texts: int
    """Held-out texts compared."""
    max_abs: float
    mean_abs: float
    label_agreement: float
    """On the texts: share whose label is the checkpoint's."""
    bound: float = LOGIT_BOUND

    @property
    def failures(self) -> list[str]:
        """What exceeds the bound; empty when the engine passes. NaN exceeds every bound."""
        found = []
        if not self.max_abs <= self.bound:
            found.append(f"logits differ by up to {self.max_abs:.3g}, allowed {self.bound:.3g}")
        if self.label_agreement < 1:
            found.append(f"labels agree on {self.label_agreement:.4%} of {self.texts} texts, wanted all")
        return found


def measure_parity(engine: Engine, model: BertForSequenceClassification, probe: Encoded) -> Parity:
    """Run both on every batch and compare. Rows whose two best logits are closer than the bound have no wrong label."""
    shapes, differences, agreed = [], [], []
    for ids, mask in made_up_batches(model):
        shapes.append((ids.shape[0], ids.shape[1]))
        differences.append(np.abs(engine(ids, mask) - _reference(model, ids, mask)))
    batches = plan_batches(probe.lengths, tokens_per_batch=PROBE_TOKENS_PER_BATCH, shuffle_seed=None)
    for rows in tqdm(batches, desc="engine against checkpoint", unit="batches", mininterval=0.5):
        batch = collate(probe, rows, pad_token_id=model.config.pad_token_id)
        ids = batch.input_ids.numpy().astype(np.int32)
        mask = np.ones_like(ids) if batch.attention_mask is None else batch.attention_mask.numpy().astype(np.int32)
        ours, reference = engine(ids, mask), _reference(model, ids, mask)
        differences.append(np.abs(ours - reference))
        margin = np.diff(np.sort(reference, axis=1)[:, -2:], axis=1)[:, 0]
        agreed.append((ours.argmax(1) == reference.argmax(1)) | (margin <= LOGIT_BOUND))
    every = np.concatenate([difference.ravel() for difference in differences])
    agreement = float(np.concatenate(agreed).mean())
    return Parity(shapes, len(probe.ids), float(every.max()), float(every.mean()), agreement)


def made_up_batches(model: BertForSequenceClassification) -> Iterator[tuple[Int32, Int32]]:
    """(input_ids, attention_mask) of many shapes; rows get shorter downwards, and the last of several is all padding."""
    generator = np.random.default_rng(0)
    longest = model.config.max_position_embeddings
    for batch, tokens in ((1, 1), (1, 2), (2, 7), (5, 33), (3, 64), (MAX_BATCH_SIZE, 5), (2, longest)):
        tokens = min(tokens, longest)  # noqa: PLW2901 - a tiny model has few positions
        ids = generator.integers(0, model.config.vocab_size, (batch, tokens), dtype=np.int32)
        lengths = np.linspace(tokens, 0 if batch > 1 else tokens, batch).round()
        yield ids, (np.arange(tokens) < lengths[:, None]).astype(np.int32)


@torch.inference_mode()
def _reference(model: BertForSequenceClassification, ids: Int32, mask: Int32) -> Float32:
    logits: Float32 = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    return logits
