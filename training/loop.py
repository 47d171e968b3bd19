"""The training loop: AdamW, warm-up and linear decay, autocast, and the best epoch kept by validation loss.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from contract.command import Failure
from training.batches import Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification
from training.metrics import Metrics, compute_metrics

Precision = Literal["auto", "fp32", "bf16"]

MAX_GRADIENT_NORM = 1.0
EVALUATION_FACTOR = 4  # evaluation keeps no activations, so its batches may hold this many times the tokens


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the training texts, while they were trained on."""
    validation: Metrics
    seconds: float
    """Training only, without the validation."""
    samples_per_s: float
    best: bool
    """Whether this epoch has the lowest validation loss so far."""


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, for the initial weights and dropout."""
    random.seed(seed)
    np.random.seed(seed)  # what libraries draw from the global generator
    torch.manual_seed(seed)


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """torch.bfloat16 where it is asked for, or `auto` finds hardware for it; else torch.float32."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    hardware = torch.cpu.get_capabilities()
    native = hardware.get("avx512_bf16") or hardware.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """The autocast region for `dtype`; with float32 it changes nothing."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


@torch.inference_mode()
def compute_logits(
    model: BertForSequenceClassification,
    encoded: Encoded,
    *,
    tokens_per_batch: int,
    dtype: torch.dtype = torch.float32,
    progress: str = "",
) -> Tensor:
    """fp32 logits [rows, C] of every row, in the order of the rows. The model is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    logits = torch.empty(len(encoded.ids), model.config.num_labels)
    batches = plan_batches(encoded.lengths, tokens_per_batch=tokens_per_batch, shuffle_seed=None)
    for rows in tqdm(batches, desc=progress, unit="batches", disable=not progress, mininterval=0.5):
        batch = collate(encoded, rows, pad_token_id=model.config.pad_token_id).to(device)
        with autocast(device, dtype):
            logits[rows] = model(batch.input_ids, batch.attention_mask).float().cpu()
    return logits


def evaluate(
    model: BertForSequenceClassification, encoded: Encoded, *, tokens_per_batch: int, dtype: torch.dtype, progress: str
) -> Metrics:
    """Metrics of `model` on labelled texts."""
    logits = compute_logits(
        model, encoded, tokens_per_batch=tokens_per_batch * EVALUATION_FACTOR, dtype=dtype, progress=progress
    )
    loss = F.cross_entropy(logits, torch.tensor(encoded.labels)).item()
    return compute_metrics(encoded.labels, logits.argmax(1).tolist(), num_classes=logits.shape[1], loss=loss)


def fit(
    model: BertForSequenceClassification,
    train: Encoded,
    validation: Encoded,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    warmup_share: float,
    tokens_per_batch: int,
    dtype: torch.dtype,
    seed: int,
    on_epoch: Callable[[EpochResult], None],
) -> list[EpochResult]:
    """Train what requires a gradient, and leave the model with the weights of the epoch of lowest validation loss.

    Args:
        warmup_share: of all steps, over which the learning rate rises from 0; it then falls linearly to 0.
        tokens_per_batch: budget of rows x longest row.
        on_epoch: called after each validation.

    Raises:
        Failure: the loss is no longer finite.
    """
    plans = [
        plan_batches(train.lengths, tokens_per_batch=tokens_per_batch, shuffle_seed=seed + epoch) for epoch in range(epochs)
    ]
    optimizer = make_optimizer(model, learning_rate=learning_rate, weight_decay=weight_decay)
    total = sum(map(len, plans))
    warmup = max(1, round(total * warmup_share))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, warmup, total))
    results: list[EpochResult] = []
    best: dict[str, Tensor] = {}
    for epoch, batches in enumerate(plans, 1):
        started = time.perf_counter()
        train_loss = _train_epoch(
            model, train, batches, optimizer=optimizer, scheduler=scheduler, dtype=dtype, title=f"epoch {epoch}/{epochs}"
        )
        seconds = time.perf_counter() - started
        metrics = evaluate(model, validation, tokens_per_batch=tokens_per_batch, dtype=dtype, progress="validation")
        if not math.isfinite(metrics.loss):
            raise Failure(f"the validation loss is {metrics.loss} after epoch {epoch}; lower --learning-rate")
        is_best = all(metrics.loss < result.validation.loss for result in results)
        if is_best:
            best = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
        results.append(EpochResult(epoch, train_loss, metrics, seconds, len(train.ids) / seconds, is_best))
        on_epoch(results[-1])
    model.load_state_dict(best, strict=False)
    return results


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what trains; biases and LayerNorm (everything of one dimension) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _schedule(step: int, warmup: int, total: int) -> float:
    return step / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))


def _train_epoch(
    model: BertForSequenceClassification,
    train: Encoded,
    batches: list[list[int]],
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    dtype: torch.dtype,
    title: str,
) -> float:
    """One pass over the training part; the mean loss of a text."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    summed = 0.0
    with tqdm(total=len(train.ids), desc=title, unit="texts", mininterval=0.5) as bar:
        for done, rows in enumerate(batches, 1):
            batch = collate(train, rows, pad_token_id=model.config.pad_token_id).to(device)
            with autocast(device, dtype):
                logits = model(batch.input_ids, batch.attention_mask)
            loss = F.cross_entropy(logits.float(), batch.labels)
            if not math.isfinite(loss.item()):
                raise Failure(
                    f"the loss is {loss.item()} at batch {done} of {title}; lower --learning-rate, or use --precision fp32"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            summed += loss.item() * len(rows)
            bar.update(len(rows))
            bar.set_postfix(loss=f"{summed / bar.n:.4f}", refresh=False)
    return summed / len(train.ids)
