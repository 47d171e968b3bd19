"""Masked fine-tuning: a seeded random share of each weight matrix trains, the rest stays as it is.

What the published article on "LoRA with 20 % of the weights" describes; it is not LoRA, whose rank is no share of weights.
The trained numbers are one short vector, so gradients and optimizer state are as short; the matrix is put together before
each product.

Shapes: I in features, O out features, S trained numbers (a share of O x I).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLinear(nn.Module):
    """A linear layer of which only the weights at `positions` train. The bias is frozen with the rest."""

    positions: Tensor

    def __init__(self, base: nn.Linear, *, share: float, generator: torch.Generator) -> None:
        """Raises ValueError when `share` is not in (0, 1]."""
        check_share(share)
        super().__init__()
        self.base = base.requires_grad_(False)
        count = max(1, round(share * base.weight.numel()))
        order = torch.randperm(base.weight.numel(), generator=generator)[:count].sort().values  # sorted: read in one direction
        self.register_buffer("positions", order.to(base.weight.device), persistent=False)
        self.values = nn.Parameter(base.weight.detach().flatten()[self.positions])  # [S]

    @property
    def weight(self) -> Tensor:
        """[O, I] with the trained numbers in place; differentiable in them."""
        return self.base.weight.flatten().index_put((self.positions,), self.values).view_as(self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return F.linear(x, self.weight, self.base.bias)

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """The plain layer, trained numbers in place. The masked layer is spent."""
        self.base.weight.copy_(self.weight)
        return self.base


def check_share(share: float) -> None:
    """Raise ValueError unless `share` is in (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"the trained share of each weight matrix is {share}; it must be above 0 and at most 1")


def unmask(model: nn.Module) -> None:
    """Turn every masked layer of `model` back into a plain one, in place."""
    masked = [(path, module) for path, module in model.named_modules() if isinstance(module, MaskedLinear)]
    for path, module in masked:
        model.set_submodule(path, module.to_linear())
