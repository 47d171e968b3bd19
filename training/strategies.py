"""What trains: every strategy that people compare, by freezing and wrapping the modules of one model.

    none      nothing: evaluate the model as it is
    head      the classification head
    first     the head and the first k encoder layers: the k next to the input
    last      the head and the last k encoder layers: the k next to the head
    lora      the head and low-rank updates of chosen linear layers (`training.lora`)
    masked    the head and a random share of every other linear layer's weights (`training.masked`)
    full      everything
    scratch   everything, from random weights (the model is then not loaded: see `training.finetune`)

The pooler and the embeddings train in `full` and `scratch` only, unless LoRA or a mask is put on the pooler's layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import nn

from training.bert import BertForSequenceClassification
from training.lora import DEFAULT_TARGETS, count_parameters, head_of, inject_lora, select_linears
from training.masked import MaskedLinear, check_share

StrategyName = Literal["none", "head", "first", "last", "lora", "masked", "full", "scratch"]
STRATEGIES: tuple[StrategyName, ...] = get_args(StrategyName)


def apply_strategy(
    model: BertForSequenceClassification,
    name: StrategyName,
    *,
    k: int = 1,
    mask_share: float = 0.2,
    rank: int = 8,
    alpha: float = 16.0,
    lora_dropout: float = 0.0,
    targets: Sequence[str] = DEFAULT_TARGETS,
    layers: Sequence[int] | None = None,
    rslora: bool = False,
    seed: int = 0,
) -> str:
    """Freeze and wrap `model` in place, as `name` says; the other arguments serve the strategies that read them.

    Works on models on the meta device, which have shapes and no memory.

    Args:
        k: layers that `first` and `last` train.
        mask_share: of each linear layer's weights that `masked` trains, drawn from `seed`.
        rank, alpha, lora_dropout, targets, layers, rslora: of `lora`, see `training.lora.inject_lora`.

    Returns:
        What trains, in words.

    Raises:
        ValueError: an unknown strategy, or an argument that the model does not allow.
    """
    if name == "lora":
        paths = inject_lora(model, targets, rank=rank, alpha=alpha, dropout=lora_dropout, layers=layers, rslora=rslora)
        return f"LoRA rank {rank} on {len(paths)} linear layers, and the head"
    if name == "masked":
        return f"{mask_share:.0%} of the weights of {_mask(model, mask_share, seed)} linear layers, and the head"
    if name in {"first", "last"}:
        return _train_layers(model, name, k)
    if name not in STRATEGIES:
        raise ValueError(f"the strategy is {name!r}; known are {', '.join(STRATEGIES)}")
    model.requires_grad_(name in {"full", "scratch"})
    if name == "head":
        head_of(model).requires_grad_(True)
    return {"none": "nothing", "head": "the head", "full": "everything", "scratch": "everything, from random weights"}[name]


def _train_layers(model: BertForSequenceClassification, name: str, k: int) -> str:
    layers = model.bert.encoder.layer
    if not 1 <= k <= len(layers):
        raise ValueError(f"k is {k}; the model has {len(layers)} layers, so that 1 to {len(layers)} can train")
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
    chosen = range(k) if name == "first" else range(len(layers) - k, len(layers))
    for number in chosen:
        layers[number].requires_grad_(True)
    side = "input" if name == "first" else "head"
    return f"the {name} {k} of {len(layers)} layers (the {side} side: {chosen[0]} to {chosen[-1]}), and the head"


def _mask(model: BertForSequenceClassification, share: float, seed: int) -> int:
    check_share(share)
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
    paths = select_linears(model, DEFAULT_TARGETS, None)
    generator = torch.Generator().manual_seed(seed)
    for path in paths:
        base = model.get_submodule(path)
        assert isinstance(base, nn.Linear)  # noqa: S101 - for the type checker
        model.set_submodule(path, MaskedLinear(base, share=share, generator=generator))
    return len(paths)


def lowest_trained_layer(model: BertForSequenceClassification) -> int:
    """How many encoder layers, from the input on, are frozen and have only frozen ones below: backward stops there.

    0 when the embeddings train; the number of layers when none of them does.
    """
    if any(parameter.requires_grad for parameter in model.bert.embeddings.parameters()):
        return 0
    for number, layer in enumerate(model.bert.encoder.layer):
        if any(parameter.requires_grad for parameter in layer.parameters()):
            return number
    return len(model.bert.encoder.layer)


def describe_counts(model: nn.Module) -> str:
    """Trainable and total parameters, and the share."""
    trainable, total = count_parameters(model)
    return f"{trainable:,} of {total:,} parameters train ({trainable / total:.2%})"
