"""Fake quantisation: a linear layer that computes in floating point what int8 will compute, and learns through the rounding.

The places, the number of bits and the scales are those of the int8 graph that `builders.quantize` writes, and the tests hold
the two to each other: every linear layer of the encoder, its weight symmetric with a scale an output channel and 7 bits, its
input 8 bits with a zero point and one scale. The pooler and the head stay as they are.

Backward, rounding counts as the identity inside the range and as a constant outside of it: the straight-through estimator
(Bengio et al. 2013, https://arxiv.org/abs/1308.3432), as torch's own kernels compute it. A weight's scale follows the weight in
every step; an input's range is calibrated before and stays: learning it too gives int8 nothing once it is calibrated well (Wu
et al. 2020, https://arxiv.org/abs/2004.09602).

Shapes: B batch, T tokens, Q query tokens (T, in the last layer 1), I in features, O out features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from training.batches import Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification
from training.ranges import Range, RangeObserver, Ranges

WEIGHT_LEVELS = 64
"""Steps on each side of 0: 7 bits, since with 8 the int8 products of processors without VNNI saturate."""
INPUT_LEVELS = 255
"""Steps of an input: 8 bits, from 0."""
CALIBRATION_TOKENS_PER_BATCH = 8192


class QuantizedLinear(nn.Linear):
    """A linear layer on rounded weights and a rounded input. Its parameters are those of `base`, under the same names."""

    def __init__(self, base: nn.Linear, limits: Range) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")  # no memory: the parameters are replaced
        self.weight, self.bias = base.weight, base.bias
        self.scale, self.zero_point = input_grid(limits)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        rounded = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, INPUT_LEVELS)
        return F.linear(rounded, round_weight(self.weight), self.bias)


def input_grid(limits: Range) -> tuple[float, int]:
    """(scale, zero point) of a range, in the arithmetic of onnxruntime's quantizer, to the bit."""
    low, high = (float(np.float32(limit)) for limit in limits)
    scale = (high - low) / INPUT_LEVELS
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return float(np.float32(scale)), round(-low / scale)


def weight_scales(weight: Tensor) -> Tensor:
    """[O, I] -> [O]: the step of each output channel; 1 for one that is all zeros."""
    scales = weight.detach().abs().amax(dim=1) / WEIGHT_LEVELS
    return torch.where(scales < torch.finfo(scales.dtype).tiny, 1.0, scales)


def round_weight(weight: Tensor) -> Tensor:
    """[O, I] on its grid, differentiable straight through."""
    scales = weight_scales(weight)
    zero = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zero, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS)


def quantized_linears(model: BertForSequenceClassification) -> dict[str, nn.Linear]:
    """The linear layers that int8 computes, by their path: all of the encoder's."""
    modules = model.bert.encoder.named_modules(prefix="bert.encoder")
    return {path: module for path, module in modules if isinstance(module, nn.Linear)}


def fake_quantize(model: BertForSequenceClassification, ranges: Ranges) -> None:
    """Round in every linear layer of the encoder, in place; where it rounds already, to other ranges.

    Raises:
        ValueError: a layer without a range, or a range without a layer.
    """
    linears = quantized_linears(model)
    if different := sorted(set(linears) ^ set(ranges)):
        raise ValueError(f"the ranges are not those of this model: {different[0]} is in one of the two alone")
    for path, module in linears.items():
        model.set_submodule(path, QuantizedLinear(module, ranges[path]))


@torch.inference_mode()
def observe_inputs(
    model: BertForSequenceClassification, encoded: Encoded, *, progress: bool = True
) -> dict[str, dict[str, Range]]:
    """Percentile -> path -> range of what enters each linear layer of the encoder, padding left out.

    Layers that read the same tensor have the same range.
    """
    observer, names = RangeObserver(), _Inputs()
    device = next(model.parameters()).device
    batches = plan_batches(encoded.lengths, tokens_per_batch=CALIBRATION_TOKENS_PER_BATCH, shuffle_seed=None)
    model.eval()
    with contextlib.ExitStack() as hooks:
        for path, module in quantized_linears(model).items():
            hooks.callback(module.register_forward_pre_hook(names.watch(path, observer)).remove)
        for title in observer.passes():
            for rows in tqdm(batches, desc=title, unit="batches", disable=not progress, mininterval=0.5):
                batch = collate(encoded, rows, pad_token_id=model.config.pad_token_id).to(device)
                names.mask = batch.attention_mask
                model(batch.input_ids, batch.attention_mask, features=batch.features)
    return {percentile: names.by_path(found) for percentile, found in observer.ranges().items()}


class _Inputs:
    """Which layer reads which tensor: one that several read is observed once, under the name of the first."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._last: tuple[str, Tensor] | None = None
        self._source: dict[str, str] = {}

    def watch(self, path: str, observer: RangeObserver) -> Callable[[nn.Module, Any], None]:
        """A hook that shows the observer what enters the layer of this path."""

        def see(_: nn.Module, inputs: tuple[Tensor]) -> None:
            (x,) = inputs  # [B, Q, I]
            if self._last is not None and self._last[1] is x:
                self._source[path] = self._last[0]
                return
            self._source[path], self._last = path, (path, x)
            tokens = self.mask is not None and self.mask.shape[1] == x.shape[1]  # or the first tokens alone, all real
            observer.see(path, (x[self.mask != 0] if tokens else x).cpu().numpy())

        return see

    def by_path(self, found: Mapping[str, Range]) -> dict[str, Range]:
        """The ranges of all layers, out of those of the tensors."""
        return {path: found[source] for path, source in self._source.items()}
