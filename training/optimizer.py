"""AdamW, and the learning rate of each step."""

from __future__ import annotations

import torch
from torch import nn

from training.masked import MaskedLinear


def learning_rate_factor(step: int, *, warmup: int, total: int, schedule: str) -> float:
    """What the peak learning rate is multiplied by in step `step`, from 0: up to 1 in `warmup` steps, then as `schedule`."""
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if schedule == "constant" else (total - step) / max(1, total - warmup)


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what trains; matrices, and the trained numbers of masked ones, are decayed, biases and LayerNorm not."""
    masked = {id(module.values) for module in model.modules() if isinstance(module, MaskedLinear)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 or id(parameter) in masked else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)
