"""LoRA from scratch: y = W x + b + (alpha / r) B A dropout(x), with W and b frozen.

Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1. The rank r is the inner dimension of the update, an integer
of at least 1; it is not a share of the weights. Merging is `training.merge`; storage in PEFT's format is `training.adapter`.

Shapes: I in features, O out features, R rank, `...` any leading dimensions.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from training.masked import MaskedLinear

HEAD = "classifier"
"""The module that is new for every task: trained in full beside the adapters, never adapted itself."""

TABULAR_HEAD = "tabular"
"""The head in its place where the model reads numeric features too."""

DEFAULT_TARGETS = ("query", "key", "value", "dense")
"""Every linear layer of the encoder, and the pooler's: a rank of 8 there learns more than a high one on two of them."""

_LAYER = re.compile(r"\.layer\.(\d+)\.")


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank update.

    A is drawn Kaiming uniform over its fan-in I (a = sqrt(5), as in the authors' code), B is zero, so that a fresh
    adapter changes nothing.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False) -> None:
        check_rank(rank)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"LoRA dropout is {dropout}; it must be in [0, 1)")
        super().__init__()
        self.base = base.requires_grad_(False)  # the bias too: it belongs to the frozen layer
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))  # [R, I]
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))  # [O, R]
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    @property
    def scaling(self) -> float:
        """alpha / r; rank-stabilised (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) alpha / sqrt(r).

        Either keeps the size of the update when r changes; the second lets high ranks learn as fast as low ones.
        """
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]. The scale is applied to the R-wide middle, the smallest tensor of the path."""
        update = F.linear(F.linear(self.dropout(x), self.lora_A) * self.scaling, self.lora_B)
        return self.base(x) + update  # type: ignore[no-any-return]


def check_rank(rank: int) -> None:
    """Raise ValueError unless `rank` is an integer of at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"LoRA rank is {rank!r}; it must be an integer of at least 1 "
            "(the inner dimension of the update, not a share of the weights)"
        )


def inject_lora(
    model: nn.Module,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    layers: Sequence[int] | None = None,
    rslora: bool = False,
) -> list[str]:
    """Wrap linear layers of `model` in place, freeze all else but the head, and return the wrapped paths in order.

    Args:
        targets: each a module path, the end of one at a dot (`query` fits `...self.query`, never `myquery`), or a
            shell pattern over whole paths (`bert.encoder.layer.*.dense`).
        layers: only in these encoder layers, 0 next to the input; None for everywhere.

    Raises:
        TypeError: `targets` is a single string.
        ValueError: a target or a layer fits nothing, the head is asked for, or the model has adapters already.
    """
    if isinstance(targets, str):
        raise TypeError(f"targets is the string {targets!r}; give a list of names, as [{targets!r}]")
    if next(lora_modules(model), None) is not None:
        raise ValueError("the model has LoRA adapters already; merge or reload it before adding others")
    check_rank(rank)
    paths = select_linears(model, targets, layers)
    model.requires_grad_(False)
    for path in paths:
        base = model.get_submodule(path)
        assert isinstance(base, nn.Linear)
        model.set_submodule(path, LoraLinear(base, rank=rank, alpha=alpha, dropout=dropout, rslora=rslora))
    head_of(model).requires_grad_(True)
    return paths


def select_linears(model: nn.Module, targets: Sequence[str], layers: Sequence[int] | None) -> list[str]:
    """The paths of the linear layers that `targets` and `layers` name (see `inject_lora`)."""
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and not _in_head(path)]
    if not targets or (layers is not None and not layers):
        raise ValueError(f"LoRA targets {list(targets)} in layers {layers} choose no linear layer; leave layers out for all")
    chosen: set[str] = set()
    for target in targets:
        found = {path for path in linears if path == target or path.endswith("." + target) or fnmatch.fnmatchcase(path, target)}
        if not found:
            kinds = sorted({path.rsplit(".", 1)[-1] for path in linears})
            raise ValueError(f"LoRA target {target!r} fits no linear layer (the head is trained in full); ends: {kinds}")
        chosen |= found
    if layers is None:
        return [path for path in linears if path in chosen]
    layer_of = {path: int(match[1]) for path in chosen if (match := _LAYER.search(path))}
    missing = sorted(set(layers) - set(layer_of.values()))
    if missing:
        raise ValueError(
            f"LoRA layers {missing} have none of the targets; the model has 0 to {max(layer_of.values(), default=0)}"
        )
    return [path for path in linears if layer_of.get(path, -1) in layers]


def head_name(model: nn.Module) -> str:
    """The name of the head that the logits come from. Raises ValueError when there is none."""
    for name in (TABULAR_HEAD, HEAD):
        if getattr(model, name, None) is not None:
            return name
    raise ValueError(f"the model has no head {HEAD!r}; a classifier cannot be served without it")


def head_of(model: nn.Module) -> nn.Module:
    """The head that the logits come from. Raises ValueError when there is none."""
    return model.get_submodule(head_name(model))


def _in_head(path: str) -> bool:
    return path.split(".", maxsplit=1)[0] in {HEAD, TABULAR_HEAD}


def lora_modules(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """(path, module) of every adapter, in the order of the model."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total). The trained numbers of a masked layer stand for weights that are counted already."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    masked = sum(module.values.numel() for module in model.modules() if isinstance(module, MaskedLinear))
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes) - masked
