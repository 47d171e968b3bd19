"""AdamW, and the learning rate of each step."""

from __future__ import annotations

import torch
from torch import nn


def learning_rate_factor(step: int, *, warmup: int, total: int, schedule: str) -> float:
    """What the peak learning rate is multiplied by in step `step`, from 0: up to 1 in `warmup` steps, then as `schedule`."""
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if schedule == "constant" else (total - step) / max(1, total - warmup)


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what trains; biases and LayerNorm (everything of one dimension) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)
