"""One definition of "the engine equals the checkpoint": one function, and one set of bounds a precision, for builds and tests.

The engine is compared with our BERT on made-up batches of shapes that nothing was tuned to, from one token to the
model's last position, with ragged and fully padded rows, and on real held-out texts. The checkpoint's answers are computed
once (`Reference`), however many engines are compared with them.

Shapes: B batch, T tokens, F numeric features, C classes, R rows of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from builders.accuracy import Accuracy, compare_accuracy
from contract.tensors import ENGINE_INPUTS, MAX_BATCH_SIZE
from training.batches import Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Inputs = tuple[npt.NDArray[Any], ...]
"""What an engine reads, by the order of `ENGINE_INPUTS`: ids and mask INT32 [B, T], perhaps features FP32 [B, F]."""
Engine = Callable[..., Float32]
"""Called with `Inputs` one by one -> logits [B, C]."""

T = TypeVar("T")

PROBE_TOKENS_PER_BATCH = 4096

TextBatch = tuple[list[int], Inputs]
"""Rows of the texts, and what the engine reads for them."""


@dataclass(frozen=True)
class Bounds:
    """How far an engine of one precision may be from the checkpoint."""

    logits: float
    """Largest logit difference."""
    flips: float
    """Largest share of texts with another label than the checkpoint's."""
    tie: float
    """A text whose two best logits are no farther apart than this has no wrong label."""
    relative: bool = True
    """Whether `logits` grows with the largest logit of the checkpoint, where that is above 1."""


LOGIT_BOUND = 1e-4
"""Largest fp32 logit difference that passes."""

BOUNDS = {
    "fp32": Bounds(logits=LOGIT_BOUND, flips=0.0, tie=LOGIT_BOUND, relative=False),
    "bf16": Bounds(logits=0.1, flips=0.005, tie=0.02),
    "fp16": Bounds(logits=0.05, flips=0.005, tie=0.005),
    "int8": Bounds(logits=0.5, flips=0.03, tie=0.05),
    "fp8": Bounds(logits=0.5, flips=0.03, tie=0.05),
}
"""By precision. bf16 keeps 8 significant bits and fp16 11, over a dozen matrix products each rounding once more."""


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
    """On the texts: share whose label is the checkpoint's, ties aside."""
    flips: float = 0.0
    """On the texts: share whose label is another one, ties included."""
    bound: float = LOGIT_BOUND
    """Of `max_abs`."""
    flip_bound: float = 0.0
    """Of 1 - `label_agreement`."""

    @property
    def failures(self) -> list[str]:
        """What exceeds the bounds; empty when the engine passes. NaN exceeds every bound."""
        found = []
        if not self.max_abs <= self.bound:
            found.append(f"logits differ by up to {self.max_abs:.3g}, allowed {self.bound:.3g}")
        if not 1 - self.label_agreement <= self.flip_bound:
            wanted = "all" if not self.flip_bound else f"{1 - self.flip_bound:.1%}"
            found.append(f"labels agree on {self.label_agreement:.4%} of {self.texts} texts, wanted {wanted}")
        return found


@dataclass(frozen=True)
class Reference:
    """The checkpoint's own logits on made-up batches and on texts."""

    made_up: list[tuple[Inputs, Float32]]
    """What the engine reads, and the logits."""
    batches: list[TextBatch]
    logits: Float32
    """[R, C] of the texts."""
    labels: list[int]
    """True class of each text; empty where it is not known."""


def feed_of(inputs: Sequence[T]) -> dict[str, T]:
    """By the names of the graph's inputs, which are those of our BERT's too."""
    return dict(zip(ENGINE_INPUTS, inputs, strict=False))


def make_reference(model: BertForSequenceClassification, probe: Encoded) -> Reference:
    """Run the checkpoint on every batch."""
    made_up = [(inputs, _reference(model, inputs)) for inputs in made_up_batches(model)]
    batches = text_batches(probe, model.config.pad_token_id)
    logits = np.empty((len(probe.ids), model.config.num_labels), np.float32)
    for rows, inputs in tqdm(batches, desc="the checkpoint's answers", unit="batches", mininterval=0.5):
        logits[rows] = _reference(model, inputs)
    return Reference(made_up, batches, logits, list(probe.labels))


def text_batches(encoded: Encoded, pad_token_id: int) -> list[TextBatch]:
    """The texts by rising length, in batches as large as a server sends: at most `MAX_BATCH_SIZE` rows."""
    plan = plan_batches(encoded.lengths, tokens_per_batch=PROBE_TOKENS_PER_BATCH, shuffle_seed=None, batch_rows=MAX_BATCH_SIZE)
    found = []
    for rows in plan:
        batch = collate(encoded, rows, pad_token_id=pad_token_id)
        ids = batch.input_ids.numpy().astype(np.int32)
        mask = np.ones_like(ids) if batch.attention_mask is None else batch.attention_mask.numpy().astype(np.int32)
        features = () if batch.features is None else (batch.features.numpy(),)
        found.append((rows, (ids, mask, *features)))
    return found


def answer_texts(engine: Engine, reference: Reference, *, title: str) -> Float32:
    """The engine's logits [R, C] on the texts of `reference`; `title` names the progress bar."""
    logits = np.empty_like(reference.logits)
    for rows, inputs in tqdm(reference.batches, desc=title, unit="batches", mininterval=0.5):
        logits[rows] = engine(*inputs)
    return logits


def prove(engine: Engine, reference: Reference, bounds: Bounds, *, title: str = "engine") -> tuple[Parity, Accuracy | None]:
    """Compare logits and labels, and the task accuracy where the texts are labelled."""
    odd = [np.abs(engine(*inputs) - logits).ravel() for inputs, logits in reference.made_up]
    ours = answer_texts(engine, reference, title=f"{title} against checkpoint")
    every = np.concatenate([*odd, np.abs(ours - reference.logits).ravel()])
    differs = ours.argmax(1) != reference.logits.argmax(1)
    wrong = differs & (margins(reference.logits) > bounds.tie)
    scale = max(1.0, float(np.abs(reference.logits).max())) if bounds.relative else 1.0
    parity = Parity(
        shapes=[(ids.shape[0], ids.shape[1]) for (ids, *_), _ in reference.made_up],
        texts=len(ours),
        max_abs=float(every.max()),
        mean_abs=float(every.mean()),
        label_agreement=float(1 - wrong.mean()),
        flips=float(differs.mean()),
        bound=bounds.logits * scale,
        flip_bound=bounds.flips,
    )
    return parity, compare_accuracy(ours, reference.logits, reference.labels) if reference.labels else None


def measure_parity(
    engine: Engine, model: BertForSequenceClassification, probe: Encoded, bounds: Bounds = BOUNDS["fp32"]
) -> Parity:
    """Run both on every batch and compare. Rows whose two best logits are closer than `bounds.tie` have no wrong label."""
    return prove(engine, make_reference(model, probe), bounds)[0]


def margins(logits: Float32) -> Float32:
    """[R, C] -> [R]: how far the best logit is above the second best."""
    best: Float32 = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0]
    return best


def made_up_batches(model: BertForSequenceClassification) -> Iterator[Inputs]:
    """Inputs of many shapes; rows get shorter downwards, and the last of several is all padding."""
    generator = np.random.default_rng(0)
    longest = model.config.max_position_embeddings
    for batch, tokens in ((1, 1), (1, 2), (2, 7), (5, 33), (3, 64), (MAX_BATCH_SIZE, 5), (2, longest)):
        tokens = min(tokens, longest)  # noqa: PLW2901 - a tiny model has few positions
        ids = generator.integers(0, model.config.vocab_size, (batch, tokens), dtype=np.int32)
        lengths = np.linspace(tokens, 0 if batch > 1 else tokens, batch).round()
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int32)
        yield (ids, mask, *_made_up_features(model, generator, batch))


def _made_up_features(model: BertForSequenceClassification, generator: np.random.Generator, batch: int) -> Iterator[Float32]:
    if (head := model.tabular) is not None:
        scores = generator.standard_normal((batch, model.config.num_features), dtype=np.float32)
        made = head.mean.numpy() + head.std.numpy() * scores
        yield np.sign(made) * np.expm1(np.abs(made)) if model.config.log_features else made


def failures_of(parity: Parity, accuracy: Accuracy | None) -> Sequence[str]:
    """What keeps an engine out of a release."""
    return [*parity.failures, *(accuracy.failures if accuracy else [])]


@torch.inference_mode()
def _reference(model: BertForSequenceClassification, inputs: Inputs) -> Float32:
    logits: Float32 = model(**feed_of(tuple(map(torch.from_numpy, inputs)))).numpy()
    return logits
