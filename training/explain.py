"""Where the time and the memory of a training step go, and how fast a strategy can be at most: expected, then measured.

    python -m training.explain lora
    python -m training.explain last --k 2 --batch-rows 32 --tokens 256

The operations are computed from the shapes (`training.work`) and counted in a real step by torch; they must agree. Then the
step is timed on the CPU beside full fine-tuning, in turn. The answer to "why is LoRA not faster for me?".
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from contract.command import Failure, UsageError, run_command
from training.bert import BertForSequenceClassification
from training.evaluation import Precision, autocast, frozen_linears_in, resolve_precision
from training.loop import MAX_GRADIENT_NORM, seed_everything
from training.lora import DEFAULT_TARGETS, count_parameters
from training.optimizer import make_optimizer
from training.pretrained import EMBEDDED, find_base, load_model
from training.strategies import StrategyName, apply_strategy, lowest_trained_layer
from training.work import Work, estimate_work

AGREEMENT = 0.01  # largest relative difference of counted and computed operations


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Say where the time and memory of a training step go."""

    strategy: Annotated[StrategyName, tyro.conf.Positional]
    """What trains; see python -m training.finetune --help."""
    base: str = EMBEDDED
    """Base model: minilm, a Hugging Face BERT folder, or a hub name."""
    batch_rows: int = 16
    """Texts in the batch."""
    tokens: int = 128
    """Tokens of each text."""
    k: int = 1
    """Encoder layers that first and last train."""
    rank: int = 8
    """LoRA rank."""
    targets: tuple[str, ...] = DEFAULT_TARGETS
    """Linear layers that LoRA adapts."""
    layers: tuple[int, ...] | None = None
    """Encoder layers that LoRA adapts; all when left out."""
    mask_share: float = 0.2
    """Share of each weight matrix that masked trains."""
    precision: Precision = "auto"
    """auto takes bf16 autocast where the hardware has it."""
    steps: int = 7
    """Steps to time, at least 3; two more come first and are not counted."""

    def __post_init__(self) -> None:
        if self.strategy == "none":
            raise UsageError("the strategy none trains nothing; there is no step to explain")
        for name, number, least in (("batch-rows", self.batch_rows, 1), ("tokens", self.tokens, 1), ("steps", self.steps, 3)):
            if number < least:
                raise UsageError(f"--{name} is {number}; it must be at least {least}")


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds beside the model's own weights."""

    gradients: int
    optimizer: int
    activations: int
    """Kept from forward for backward; the weights themselves not counted, their copies in bf16 are."""


class Subject:
    """One strategy on one batch, to be counted and timed."""

    def __init__(self, options: Explain, strategy: StrategyName) -> None:
        seed_everything(0)
        model, _ = load_model(
            find_base(options.base), num_labels=2, new_head=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        if options.tokens > model.config.max_position_embeddings:
            raise UsageError(f"--tokens is {options.tokens}; the model reads at most {model.config.max_position_embeddings}")
        chosen: dict[str, Any] = {"k": options.k, "rank": options.rank, "targets": options.targets, "layers": options.layers}
        try:
            self.trains = apply_strategy(model, strategy, mask_share=options.mask_share, **chosen)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.model: BertForSequenceClassification = model.train()
        self.optimizer = make_optimizer(model, learning_rate=1e-4, weight_decay=0.01)
        self.dtype = resolve_precision(options.precision, torch.device("cpu"))
        self.ids = torch.randint(0, model.config.vocab_size, (options.batch_rows, options.tokens))
        self.labels = torch.arange(options.batch_rows) % 2
        self.work = estimate_work(model, rows=options.batch_rows, tokens=options.tokens)

    def forward(self) -> Tensor:
        """The loss."""
        with autocast(self.ids.device, self.dtype):
            logits = self.model(self.ids)
        return F.cross_entropy(logits.float(), self.labels)

    def count(self) -> tuple[float, float]:
        """(forward, backward) operations of one real step, counted by torch."""
        with FlopCounterMode(display=False) as forward:
            loss = self.forward()
        with FlopCounterMode(display=False) as backward:
            loss.backward()  # type: ignore[no-untyped-call]
        return float(forward.get_total_flops()), float(backward.get_total_flops())

    def time(self) -> tuple[float, float, float]:
        """Seconds of (forward, backward, optimizer)."""
        marks = [time.perf_counter()]
        loss = self.forward()
        marks.append(time.perf_counter())
        loss.backward()  # type: ignore[no-untyped-call]
        marks.append(time.perf_counter())
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(time.perf_counter())
        return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]

    def memory(self) -> Memory:
        """Measured on one more step; the optimizer must have stepped before."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.forward()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = sum(parameter.grad.nbytes for parameter in self.model.parameters() if parameter.grad is not None)
        self.optimizer.zero_grad()
        moments = sum(value.nbytes for state in self.optimizer.state.values() for value in state.values())
        return Memory(gradients, moments, sum(kept.values()))


def check_counts(subject: Subject) -> tuple[float, float]:
    """(forward, backward) as counted. Raises `Failure` when they are not what `training.work` computes."""
    forward, backward = subject.count()
    expected = subject.work.forward, subject.work.activation_gradient + subject.work.weight_gradient
    for name, counted, computed in zip(("forward", "backward"), (forward, backward), expected, strict=True):
        if abs(counted - computed) > AGREEMENT * computed:
            raise Failure(f"{name}: torch counted {counted:.4g} operations, the shapes say {computed:.4g}")
    return forward, backward


def explain(options: Explain) -> str:
    """The explanation, as text."""
    subject, full = Subject(options, options.strategy), Subject(options, "full")
    counted = check_counts(subject)
    lines = [
        f"{options.strategy}: {subject.trains}; {options.batch_rows} x {options.tokens} tokens, "
        f"{str(subject.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads",
        "",
        *_work_table(subject.work, full.work),
        f"counted by torch in a real step: forward {counted[0] / 1e9:.2f}, backward {counted[1] / 1e9:.2f} GFLOP: agrees",
        "",
    ]
    with frozen_linears_in(subject.model, subject.dtype), frozen_linears_in(full.model, full.dtype):  # as in training
        ours, theirs = _alternate(subject.time, full.time, options.steps)
    lines += [
        *_time_table(subject, full, ours, theirs),
        "",
        *_memory_table(subject, full),
        "",
        *_verdict(subject, full, ours, theirs),
    ]
    return "\n".join(lines)


def _alternate(
    ours: Callable[[], tuple[float, float, float]], theirs: Callable[[], tuple[float, float, float]], steps: int
) -> tuple[list[float], list[float]]:
    """Median seconds of (forward, backward, optimizer) of both, in turn."""
    found: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    for number in tqdm(range(-2, steps), desc="timing", unit="steps", mininterval=0.5):
        for measure, into in zip((ours, theirs), found, strict=True):
            seconds = measure()
            if number >= 0:
                into.append(seconds)
    mine, others = ([statistics.median(column) for column in zip(*rows, strict=True)] for rows in found)
    return mine, others


def _work_table(work: Work, full: Work) -> list[str]:
    rows = [("forward", work.forward, full.forward)]
    rows.append(("activation gradients", work.activation_gradient, full.activation_gradient))
    rows.append(("weight gradients", work.weight_gradient, full.weight_gradient))
    rows.append(("together", work.total, full.total))
    lines = [f"{'GFLOP of one step':<24}{'this':>10}{'share':>8}{'full':>10}{'share':>8}"]
    for name, mine, theirs in rows:
        lines.append(f"{name:<24}{mine / 1e9:>10.2f}{mine / work.total:>8.0%}{theirs / 1e9:>10.2f}{theirs / full.total:>8.0%}")
    return lines


def _time_table(subject: Subject, full: Subject, ours: list[float], theirs: list[float]) -> list[str]:
    lines = [f"{'ms of one step':<24}{'this':>10}{'GFLOP/s':>10}{'full':>10}{'GFLOP/s':>10}"]
    operations = [
        (subject.work.forward, full.work.forward),
        (subject.work.total - subject.work.forward, full.work.total - full.work.forward),
    ]
    for name, mine, other, (work, full_work) in zip(("forward", "backward"), ours, theirs, operations, strict=False):
        rates = f"{work / mine / 1e9:>10.0f}", f"{full_work / other / 1e9:>10.0f}"
        lines.append(f"{name:<24}{1e3 * mine:>10.1f}{rates[0]}{1e3 * other:>10.1f}{rates[1]}")
    lines.append(f"{'optimizer':<24}{1e3 * ours[2]:>10.1f}{'':>10}{1e3 * theirs[2]:>10.1f}")
    lines.append(f"{'together':<24}{1e3 * sum(ours):>10.1f}{'':>10}{1e3 * sum(theirs):>10.1f}")
    return lines


def _memory_table(subject: Subject, full: Subject) -> list[str]:
    mine, theirs = subject.memory(), full.memory()
    sizes = [count_parameters(each.model) for each in (subject, full)]
    lines = [f"{'MB while training':<24}{'this':>10}{'expected':>10}{'full':>10}{'expected':>10}"]
    expected = {"gradients": 4, "optimizer": 8}  # bytes for each trained number: one fp32, two fp32 moments
    for name, size in expected.items():
        cells = "".join(
            f"{getattr(memory, name) / 1e6:>10.1f}{size * trainable / 1e6:>10.1f}"
            for memory, (trainable, _) in zip((mine, theirs), sizes, strict=True)
        )
        lines.append(f"{name:<24}{cells}")
    lines.append(f"{'activations':<24}{mine.activations / 1e6:>10.1f}{'':>10}{theirs.activations / 1e6:>10.1f}")
    return lines


def _verdict(subject: Subject, full: Subject, ours: list[float], theirs: list[float]) -> list[str]:
    limit, got = full.work.total / subject.work.total, sum(theirs) / sum(ours)
    lines = [f"against full: {limit:.2f}x by operations, {got:.2f}x measured"]
    frozen = lowest_trained_layer(subject.model)
    layers = len(subject.model.bert.encoder.layer)
    if frozen:
        rest = f"backward stops above the first {frozen} of {layers} layers"
        lines.append(f"{rest}; --cache-prefix would spare their forward too, from the second epoch on")
    else:
        lines.append("backward runs through every layer: train the head side only (last, or --layers) to stop it earlier")
    rates = [each.work.total / sum(seconds[:2]) for each, seconds in ((subject, ours), (full, theirs))]
    if rates[0] < 0.8 * rates[1]:
        lines.append(
            f"its operations run at {rates[0] / rates[1]:.0%} of full's rate: the products are small; use larger batches"
        )
    return lines


if __name__ == "__main__":
    run_command(lambda: print(explain(tyro.cli(Explain, prog="python -m training.explain", description=__doc__))))
