"""Logits and metrics of a model on encoded texts, and the precision that it computes in.

Shapes: R rows, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from contract.command import Failure
from training.batches import Batch, Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification
from training.distributed import ALONE, Workers
from training.masked import MaskedLinear
from training.metrics import Metrics, compute_metrics

Precision = Literal["auto", "fp32", "bf16"]

EVALUATION_FACTOR = 4  # evaluation keeps no activations, so its batches may hold this many times the tokens


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


@contextlib.contextmanager
def clear_out_of_memory(batch: Batch) -> Iterator[None]:
    """Turn torch's errors of a memory that is full into a `Failure` that says which batch was too large."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        texts, tokens = batch.input_ids.shape
        raise Failure(f"memory ran out on a batch of {texts} texts of {tokens} tokens; lower --tokens-per-batch") from error


@contextlib.contextmanager
def frozen_linears_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold the frozen linear layers in `dtype` inside the block, and as they were, bit for bit, after it.

    The products are those that autocast would compute; it would round the same weights again in every step, an eighth
    of the time of a step on one text of 128 tokens.
    """
    masked = {id(module.base) for module in model.modules() if isinstance(module, MaskedLinear)}  # mixed with trained numbers
    linears = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in masked]
    frozen = [parameter for module in linears for parameter in module.parameters() if not parameter.requires_grad]
    originals = [parameter.data for parameter in frozen]
    try:
        for parameter in frozen:
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, original in zip(frozen, originals, strict=True):
            parameter.data = original


@torch.inference_mode()
def compute_logits(
    model: BertForSequenceClassification,
    encoded: Encoded,
    *,
    tokens_per_batch: int,
    dtype: torch.dtype = torch.float32,
    progress: str = "",
    workers: Workers = ALONE,
) -> Tensor:
    """fp32 logits [R, C] of every row, in the order of the rows, on every worker. The model is left in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    logits = torch.zeros(len(encoded.ids), model.config.num_labels)
    batches = plan_batches(encoded.lengths, tokens_per_batch=tokens_per_batch, shuffle_seed=None)
    mine = batches[workers.rank :: workers.count]
    hidden = not progress or not workers.first
    for rows in tqdm(mine, desc=progress, unit="batches", disable=hidden, mininterval=0.5):
        batch = collate(encoded, rows, pad_token_id=model.config.pad_token_id).to(device)
        with clear_out_of_memory(batch), autocast(device, dtype):
            logits[rows] = model(batch.input_ids, batch.attention_mask, features=batch.features).float().cpu()
    return workers.sum(logits)


def measure(logits: Tensor, labels: list[int], targets: Tensor | None = None) -> Metrics:
    """Metrics of logits [R, C] against the true classes; the loss against `targets` [R, C] where there are some."""
    loss = F.cross_entropy(logits, torch.tensor(labels) if targets is None else targets).item()
    return compute_metrics(labels, logits.argmax(1).tolist(), num_classes=logits.shape[1], loss=loss)


def evaluate(
    model: BertForSequenceClassification,
    encoded: Encoded,
    *,
    tokens_per_batch: int,
    dtype: torch.dtype,
    progress: str,
    workers: Workers = ALONE,
) -> Metrics:
    """Metrics of `model` on labelled texts; `tokens_per_batch` is that of training."""
    logits = compute_logits(
        model,
        encoded,
        tokens_per_batch=tokens_per_batch * EVALUATION_FACTOR,
        dtype=dtype,
        progress=progress,
        workers=workers,
    )
    return measure(logits, encoded.labels, encoded.targets)
