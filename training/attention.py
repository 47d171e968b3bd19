"""Attention and its mask: torch's fused kernels on a GPU, four batched products on a CPU while training.

torch 2.13's fused CPU attention runs its backward several times slower than the products it is made of (bf16, 12 heads of
32, forward and backward: 69 against 4 ms at 64 x 32 tokens, 34 against 9 ms at 16 x 128, 32 against 15 ms at 8 x 256), so
on a CPU the backward is written out here. With dropout of the attention weights, and in inference, torch's own is used.

Shapes: B batch, H heads, Q query tokens, T tokens, K head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(K) + mask) V.

    Args:
        query: [B, H, Q, K]. `key` and `value`: [B, H, T, K].
        mask: additive, [B, 1, 1, T], or None.
        dropout: of the attention weights.

    Returns:
        [B, H, Q, K].
    """
    if query.device.type == "cpu" and torch.is_grad_enabled() and not dropout:
        return _CpuAttention.apply(query.contiguous(), key.contiguous(), value.contiguous(), mask)  # type: ignore[no-untyped-call,no-any-return]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


class _CpuAttention(torch.autograd.Function):
    """Saves the weights P [B, H, Q, T] and multiplies; dS = P * (dP - rowsum(dP * P)) is softmax's own backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = torch.matmul(query, key.transpose(-1, -2)).div_(math.sqrt(query.shape[-1]))  # [B, H, Q, T]
        if mask is not None:
            scores += mask
        weights = scores.softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        return torch.matmul(weights, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        (d_context,) = gradients
        d_value = torch.matmul(weights.transpose(-1, -2), d_context) if ctx.needs_input_grad[2] else None
        if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            return None, None, d_value, None
        d_weights = torch.matmul(d_context, value.transpose(-1, -2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).div_(math.sqrt(query.shape[-1]))
        d_query = torch.matmul(d_scores, key) if ctx.needs_input_grad[0] else None
        d_key = torch.matmul(d_scores.transpose(-1, -2), query) if ctx.needs_input_grad[1] else None
        return d_query, d_key, d_value, None


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that matrix products of `tensor` run in: the autocast type inside an autocast region, else its own."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def additive_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """[B, T] of ones and zeros -> [B, 1, 1, T] of 0 and the lowest finite number of `dtype`; None stays None.

    Finite, because a row whose every token is padding would turn into NaN under -inf.
    """
    if attention_mask is None:
        return None
    padding = attention_mask[:, None, None, :] == 0
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill(padding, torch.finfo(dtype).min)
