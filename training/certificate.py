"""The merge certificate: measured proof that a merged checkpoint computes what the adapted model computed.

Three things are measured on the merged tensors as they were read back from the disk: every adapted weight against
W + (alpha / r) B A in fp64, every other tensor against its original bit for bit, and the logits on probe texts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.batches import Encoded
from training.bert import BertForSequenceClassification
from training.evaluation import compute_logits
from training.lora import LoraLinear, lora_modules

LOGIT_BOUND = 1e-5
"""Largest fp32 logit difference that passes."""

WEIGHT_BOUND_ULPS = 4.0
"""Largest weight error that passes, in units of fp32 rounding (2^-23) of max(|W| + s |B| |A|) of its module."""

PROBE_TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class ModuleError:
    """One adapted module: max |W' - (W + s B A)| against its bound."""

    max_abs_error: float
    bound: float
    max_abs_update: float
    """max |s B A|: how far the adapter moved the weight."""


@dataclass(frozen=True)
class LogitDelta:
    """Adapted against merged logits on the probe texts, in one precision."""

    max_abs: float
    mean_abs: float
    label_agreement: float


@dataclass(frozen=True)
class Certificate:
    """What was measured, the bounds, and the hashes of what it was measured on."""

    modules: dict[str, ModuleError]
    changed: list[str]
    """Tensors outside the adapted modules that are not bit for bit the originals, or are missing or extra."""
    probe_texts: int
    fp32: LogitDelta
    bf16: LogitDelta
    """Not judged: in bf16 both sides round. Shown, since a bf16 engine will round as well."""
    hashes: dict[str, str]
    logit_bound: float = LOGIT_BOUND

    @property
    def failures(self) -> list[str]:
        """What exceeds its bound, one sentence each; empty when the certificate passes."""
        found = [
            f"{path}: max |W' - (W + sBA)| is {module.max_abs_error:.3g}, allowed {module.bound:.3g}"
            for path, module in self.modules.items()
            if not module.max_abs_error <= module.bound
        ]
        found += [f"{name} is not the adapted model's own tensor" for name in self.changed]
        if not self.fp32.max_abs <= self.logit_bound:
            found.append(f"fp32 logits differ by up to {self.fp32.max_abs:.3g}, allowed {self.logit_bound:.3g}")
        if self.fp32.label_agreement < 1:
            found.append(f"fp32 labels agree on {self.fp32.label_agreement:.4%} of {self.probe_texts} probe texts, wanted all")
        return found

    def to_json(self) -> dict[str, Any]:
        """The certificate as written to `merge_certificate.json`."""
        return {"passed": not self.failures, "failures": self.failures, **dataclasses.asdict(self)}


def certify(
    adapted: BertForSequenceClassification,
    merged: BertForSequenceClassification,
    probe: Encoded,
    hashes: dict[str, str],
) -> Certificate:
    """Measure `merged` against `adapted` (both fp32, on the CPU) on the probe texts."""
    state = merged.state_dict()
    modules = {path: _module_error(module, state[f"{path}.weight"]) for path, module in lora_modules(adapted)}
    expected = original_tensors(adapted)
    unadapted = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in modules}
    changed = sorted(
        name
        for name in set(expected) | set(unadapted)
        if name not in expected or name not in unadapted or not torch.equal(expected[name], unadapted[name])
    )
    deltas = [_logit_delta(adapted, merged, probe, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return Certificate(modules, changed, len(probe.ids), deltas[0], deltas[1], hashes)


def original_tensors(adapted: BertForSequenceClassification) -> dict[str, Tensor]:
    """The tensors that merging must leave alone, under the names of plain BERT: all but the adapted weights."""
    wrapped = {path for path, _ in lora_modules(adapted)}
    kept = {}
    for name, tensor in adapted.state_dict().items():
        path, _, rest = name.rpartition(".base.")
        if path in wrapped and rest == "bias":
            kept[f"{path}.bias"] = tensor
        elif path not in wrapped and name.rpartition(".")[0] not in wrapped:
            kept[name] = tensor
    return kept


def _module_error(module: LoraLinear, merged: Tensor) -> ModuleError:
    weight, a, b = (tensor.detach().double() for tensor in (module.base.weight, module.lora_A, module.lora_B))
    update = module.scaling * (b @ a)
    magnitude = (weight.abs() + abs(module.scaling) * (b.abs() @ a.abs())).max().item()
    return ModuleError(
        max_abs_error=(merged.double() - (weight + update)).abs().max().item(),
        bound=WEIGHT_BOUND_ULPS * torch.finfo(torch.float32).eps * magnitude,
        max_abs_update=update.abs().max().item(),
    )


def _logit_delta(
    adapted: BertForSequenceClassification, merged: BertForSequenceClassification, probe: Encoded, dtype: torch.dtype
) -> LogitDelta:
    name = str(dtype).removeprefix("torch.")
    ours, theirs = (
        compute_logits(
            model, probe, tokens_per_batch=PROBE_TOKENS_PER_BATCH, dtype=dtype, progress=f"certifying, {name}, {which}"
        )
        for which, model in (("adapted", adapted), ("merged", merged))
    )
    delta = (ours - theirs).abs()
    agreement = (ours.argmax(1) == theirs.argmax(1)).float().mean().item()
    return LogitDelta(delta.max().item(), delta.mean().item(), agreement)
