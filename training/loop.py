"""The training loop: AdamW, warm-up and decay, autocast, the best epoch by validation loss; stoppable after any step.

A run that was stopped or killed and is continued from its last state ends, on a CPU, with the same bits as one that was not.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import dataclasses
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from contract.command import Failure
from training.batches import Batch, Encoded, collate, plan_batches
from training.bert import BertForSequenceClassification
from training.distributed import ALONE, Workers
from training.evaluation import autocast, clear_out_of_memory, evaluate, frozen_linears_in
from training.metrics import Metrics
from training.optimizer import learning_rate_factor, make_optimizer
from training.prefix import PrefixCache
from training.state import Interrupted, StopSignals, save_state

MAX_GRADIENT_NORM = 1.0
_CHECK_EVERY = 16  # steps between looks at the loss on a GPU, which each wait for it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train."""

    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_share: float
    """Of all steps, over which the learning rate rises."""
    schedule: Literal["linear", "constant"] = "linear"
    """After the warm-up: falling linearly to 0, or constant."""
    tokens_per_batch: int
    """Budget of rows x longest row."""
    batch_rows: int | None = None
    dtype: torch.dtype
    seed: int
    save_every_s: float = math.inf
    loss_to_beat: float = math.inf
    """Validation loss of the model as it is: an epoch that does not come below it is not kept."""


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


class _Step(nn.Module):
    """The forward pass of one training step: the whole model, or what lies behind a cached prefix."""

    def __init__(self, model: BertForSequenceClassification, cache: PrefixCache | None) -> None:
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, batch: Batch) -> Tensor:
        """[B, T] -> logits [B, C]."""
        if self.cache is None:
            return self.model(batch.input_ids, batch.attention_mask, features=batch.features)  # type: ignore[no-any-return]
        pooled = self.model.bert.suffix(self.cache.read(batch), batch.attention_mask, self.cache.layers)
        return self.model.classify(pooled, batch.features)


class Training:
    """One run over the training part. Its whole state can be saved between two steps, and taken up again."""

    def __init__(
        self,
        model: BertForSequenceClassification,
        train: Encoded,
        validation: Encoded,
        plan: Plan,
        *,
        workers: Workers = ALONE,
        state_file: Path | None = None,
        identity: dict[str, Any] | None = None,
        cache: PrefixCache | None = None,
        progress: bool = True,
    ) -> None:
        self.progress = progress and workers.first
        self.model, self.train, self.validation, self.plan, self.workers = model, train, validation, plan, workers
        self.state_file, self.identity = state_file, identity or {}
        self.device = next(model.parameters()).device
        self.trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.optimizer = make_optimizer(model, learning_rate=plan.learning_rate, weight_decay=plan.weight_decay)
        self.batches = [
            plan_batches(
                train.lengths,
                tokens_per_batch=plan.tokens_per_batch,
                shuffle_seed=plan.seed + epoch,
                batch_rows=plan.batch_rows,
            )
            for epoch in range(plan.epochs)
        ]
        self.step_module = workers.wrap(_Step(model, cache), self.device)
        self.results: list[EpochResult] = []
        self.best = self._copy_trained() if math.isfinite(plan.loss_to_beat) else {}
        self.done = 0  # batches of the epoch that runs
        self.seconds = 0.0  # spent on them
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # over their texts, of all workers
        self._saved_at = time.monotonic()

    def fit(self, on_epoch: Callable[[EpochResult], None]) -> list[EpochResult]:
        """Train, and leave the model with the weights of the epoch of lowest validation loss.

        Raises:
            Failure: the loss is no longer finite, memory ran out, or the state cannot be saved.
            Interrupted: SIGTERM or SIGINT came; the state is saved.
        """
        with StopSignals().caught() as stop, frozen_linears_in(self.model, self.plan.dtype):
            while len(self.results) < self.plan.epochs:
                with stop.held():
                    self._train_epoch(stop)
                    self._save()
                if stop.requested:
                    raise Interrupted(stop.requested)
                self._validate()
                on_epoch(self.results[-1])
        self.model.load_state_dict(self.best, strict=False)
        return self.results

    def _train_epoch(self, stop: StopSignals) -> None:
        self.model.train()
        epoch = len(self.results) + 1
        batches = self.batches[epoch - 1]
        title = f"epoch {epoch}/{self.plan.epochs}"
        texts = sum(map(len, batches[: self.done]))
        bar = tqdm(
            total=len(self.train.ids), initial=texts, desc=title, unit="texts", disable=not self.progress, mininterval=0.5
        )
        with bar:
            while self.done < len(batches):
                started = time.perf_counter()
                rows = batches[self.done]
                self._step(rows)
                self.done += 1
                texts += len(rows)
                if self.device.type == "cpu" or self.done % _CHECK_EVERY == 0 or self.done == len(batches):
                    bar.set_postfix(loss=f"{self._check_loss(title) / texts:.4f}", refresh=False)
                bar.update(len(rows))
                self.seconds += time.perf_counter() - started
                self._pause(stop)

    def _step(self, rows: list[int]) -> None:
        """Forward, backward and update for one batch, of which this worker computes its share."""
        mine = self.workers.share(rows)
        weight = 1.0 if mine else 0.0  # a worker without rows must still take part in the averaging of gradients
        batch = collate(self.train, mine or rows[:1], pad_token_id=self.model.config.pad_token_id).to(self.device)
        with clear_out_of_memory(batch):
            with autocast(self.device, self.plan.dtype):
                logits = self.step_module(batch)
            wanted = batch.labels if batch.targets is None else batch.targets
            summed = F.cross_entropy(logits.float(), wanted, reduction="sum") * weight
            # Averaging over the workers divides by their number; the loss of the batch is the mean over its rows.
            (summed * (self.workers.count / len(rows))).backward()  # type: ignore[no-untyped-call]
            self.loss_sum += self.workers.sum(summed.detach().double())
            norm = nn.utils.clip_grad_norm_(self.trained.values(), MAX_GRADIENT_NORM)
            self.loss_sum += 0 * norm.double()  # a gradient that is no number shows at the next look at the loss
            self._set_learning_rate()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _set_learning_rate(self) -> None:
        total = sum(map(len, self.batches))
        factor = learning_rate_factor(
            sum(map(len, self.batches[: len(self.results)])) + self.done,
            warmup=max(1, round(total * self.plan.warmup_share)),
            total=total,
            schedule=self.plan.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * factor

    def _check_loss(self, title: str) -> float:
        loss = self.loss_sum.item()
        if not math.isfinite(loss):
            raise Failure(
                f"the loss or a gradient is {loss} at batch {self.done} of {title}; "
                "lower --learning-rate, or use --precision fp32"
            )
        return loss

    def _pause(self, stop: StopSignals) -> None:
        """Between two steps: stop where a signal asked for it, save where it is time."""
        late = self.workers.first and time.monotonic() - self._saved_at >= self.plan.save_every_s
        asked, late = self.workers.any(bool(stop.requested), late)
        if asked or late:
            self._check_loss(f"epoch {len(self.results) + 1}")  # on a GPU nobody may have looked at it yet
            self._save()
        if asked:
            raise Interrupted(stop.requested or signal.SIGTERM)

    def _save(self) -> None:
        """Write the state, of all workers, to `state_file`."""
        randoms = self.workers.gather(_random_state(self.device))
        self._saved_at = time.monotonic()
        if self.state_file is None or not self.workers.first:
            return
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"random.{rank}": state for rank, state in enumerate(randoms)} | {"loss_sum": self.loss_sum}
        results = [dataclasses.asdict(result) for result in self.results]
        values = {"identity": self.identity, "results": results, "done": self.done, "seconds": self.seconds}
        save_state(self.state_file, tensors, values)

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up the state that `training.state.load_state` read; its identity must have been compared before."""
        for name, parameter in self.trained.items():
            parameter.copy_(tensors[f"model.{name}"])
        self.best = {name: tensors[f"best.{name}"].to(self.device) for name in self.trained if f"best.{name}" in tensors}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, moment = name.split(".")
                moments.setdefault(int(number), {})[moment] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.results = [
            EpochResult(**(result | {"validation": Metrics(**result["validation"])})) for result in values["results"]
        ]
        self.done, self.seconds = values["done"], values["seconds"]
        self.loss_sum = tensors["loss_sum"].to(self.device)
        _set_random_state(tensors[f"random.{self.workers.rank}"], self.device)

    def _copy_trained(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def _validate(self) -> None:
        epoch = len(self.results) + 1
        metrics = evaluate(
            self.model,
            self.validation,
            tokens_per_batch=self.plan.tokens_per_batch,
            dtype=self.plan.dtype,
            progress="validation" if self.progress else "",
            workers=self.workers,
        )
        if not math.isfinite(metrics.loss):
            raise Failure(f"the validation loss is {metrics.loss} after epoch {epoch}; lower --learning-rate")
        best = metrics.loss < min([self.plan.loss_to_beat, *(result.validation.loss for result in self.results)])
        if best:
            self.best = self._copy_trained()
        texts = len(self.train.ids)
        loss = self.loss_sum.item() / texts
        self.results.append(EpochResult(epoch, loss, metrics, self.seconds, texts / self.seconds, best))
        self.done, self.seconds = 0, 0.0
        self.loss_sum.zero_()


def _random_state(device: torch.device) -> Tensor:
    """The generators that dropout draws from, as one vector: the CPU's, and on a GPU that of the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
