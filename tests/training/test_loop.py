"""`training.loop`: repeatable, the best epoch kept, divergence reported; equal to a loop written out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from contract.command import Failure
from tests.tiny import ALL_LINEARS, adapted_bert, random_bert, random_encoded, tiny_config
from training.batches import Encoded, plan_batches
from training.bert import BertForSequenceClassification
from training.evaluation import evaluate
from training.loop import EpochResult, Plan, Training, seed_everything
from training.lora import inject_lora

CONFIG = tiny_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)


def fit_tiny(
    model: BertForSequenceClassification,
    train: Encoded,
    validation: Encoded,
    *,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
    **options: Any,
) -> list[EpochResult]:
    """`Training.fit` with small numbers."""
    values: dict[str, Any] = {
        "epochs": 2,
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "warmup_share": 0.1,
        "tokens_per_batch": 64,
        "dtype": torch.float32,
        "seed": 0,
    }
    return Training(model, train, validation, Plan(**(values | options))).fit(on_epoch)


def trained(seed: int, **options: Any) -> tuple[dict[str, Tensor], list[EpochResult]]:
    """The weights after training a seeded model with adapters and dropout."""
    seed_everything(seed)
    model = BertForSequenceClassification(CONFIG)
    inject_lora(model, ALL_LINEARS, rank=2, alpha=4.0, dropout=0.1)
    results = fit_tiny(model, random_encoded(48, CONFIG), random_encoded(16, CONFIG, seed=1), seed=seed, **options)
    return model.state_dict(), results


def test_the_same_seed_gives_bit_identical_weights_and_losses() -> None:
    (first, results), (second, others) = trained(7), trained(7)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [(r.train_loss, r.validation) for r in results] == [(r.train_loss, r.validation) for r in others]


def test_another_seed_gives_other_weights() -> None:
    (first, _), (second, _) = trained(7), trained(8)
    assert not any(torch.equal(first[name], second[name]) for name in first if "lora" in name)


def test_seeding_covers_python_numpy_and_torch() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), torch.rand(()).item()

    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert not set(draw()) & set(first)


def test_training_lowers_the_loss_and_learns_the_task() -> None:
    model = random_bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), std=0.1)
    data = random_encoded(60, model.config)
    before = evaluate(model, data, tokens_per_batch=64, dtype=torch.float32, progress="")
    results = fit_tiny(model, data, data, epochs=12)
    assert results[-1].train_loss < 0.5 * results[0].train_loss
    assert before.accuracy < 0.7
    assert results[-1].validation.accuracy > 0.95
    assert [result.epoch for result in results] == list(range(1, 13))


def test_the_weights_of_the_best_epoch_are_kept_when_later_ones_are_worse() -> None:
    """Validation labels are shifted by one class: what is learnt makes them worse, epoch by epoch."""
    model = random_bert(CONFIG, std=0.1)
    train = random_encoded(60, CONFIG)
    validation = Encoded(train.ids, [(label + 1) % 3 for label in train.labels], train.truncated)
    states: list[dict[str, Tensor]] = []
    seen: list[EpochResult] = []

    def record(result: EpochResult) -> None:
        seen.append(result)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    results = fit_tiny(model, train, validation, epochs=4, on_epoch=record)
    assert results == seen
    losses = [result.validation.loss for result in results]
    assert losses.index(min(losses)) == 0, "the later epochs were meant to be worse"
    assert [result.best for result in results] == [True, False, False, False]
    assert all(torch.equal(tensor, states[0][name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(states[0]["classifier.weight"], states[3]["classifier.weight"])
    again = evaluate(model, validation, tokens_per_batch=64, dtype=torch.float32, progress="")
    assert again == results[0].validation


def test_the_last_epoch_is_kept_when_it_is_the_best() -> None:
    model = random_bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), std=0.1)
    data = random_encoded(40, model.config)
    results = fit_tiny(model, data, data, epochs=3)
    assert [result.best for result in results] == [True, True, True]
    again = evaluate(model, data, tokens_per_batch=64, dtype=torch.float32, progress="")
    assert again == results[-1].validation


def written_out(model: BertForSequenceClassification, data: Encoded, *, epochs: int, seed: int) -> list[dict[str, Tensor]]:
    """The weights after each epoch of a loop as plain as can be: texts one by one, torch's and transformers' own parts."""
    plans = [plan_batches(data.lengths, tokens_per_batch=64, shuffle_seed=seed + epoch) for epoch in range(epochs)]
    decays = [{"params": [p], "weight_decay": 0.01 if p.ndim > 1 else 0.0} for p in model.parameters()]
    optimizer = torch.optim.AdamW(decays, lr=3e-3, foreach=False)
    steps = sum(map(len, plans))
    warmup = max(1, round(0.1 * steps))
    factor = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps).lr_lambdas[0]
    states, step = [], 0
    for plan in plans:
        for rows in plan:
            model.zero_grad(set_to_none=True)
            logits = torch.cat([model(torch.tensor([data.ids[row]])) for row in rows])
            F.cross_entropy(logits, torch.tensor([data.labels[row] for row in rows])).backward()  # type: ignore[no-untyped-call]
            norm = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm()
            for parameter in model.parameters():
                if parameter.grad is not None and norm > 1:
                    parameter.grad /= norm
            for group in optimizer.param_groups:  # one step ahead in the warm-up: transformers' first step has a rate of 0
                group["lr"] = 3e-3 * factor(step + 1 if step < warmup else step)
            optimizer.step()
            step += 1
        states.append(weights_of(model))
    return states


def weights_of(model: BertForSequenceClassification) -> dict[str, Tensor]:
    """A copy of all but the key biases."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if not name.endswith("key.bias")}


@pytest.mark.parametrize("seed", [0, 3])
def test_the_weights_after_each_epoch_are_those_of_a_loop_written_out(seed: int) -> None:
    """To 1e-4, where a step moves a weight by up to 3e-3: Adam divides by gradients near 0 and enlarges their rounding.

    It can turn the sign of the first steps of a weight whose gradient is rounding alone: one weight in 10,000 may be off.
    Key biases are left out: softmax takes no notice of them, so that their gradient is nothing but rounding.
    """
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, data = random_bert(config), random_encoded(40, config)
    states: list[dict[str, Tensor]] = []

    def record(_: EpochResult) -> None:
        states.append(weights_of(model))

    fit_tiny(model, data, data, epochs=3, seed=seed, on_epoch=record)
    expected = written_out(random_bert(config).train(), data, epochs=3, seed=seed)
    for ours, theirs in zip(states, expected, strict=True):
        assert ours.keys() == theirs.keys()
        off = sum(((tensor - theirs[name]).abs() > 1e-4).sum().item() for name, tensor in ours.items())
        assert off <= sum(tensor.numel() for tensor in ours.values()) / 10_000


def test_dropout_acts_in_every_epoch_also_after_a_validation() -> None:
    """At a learning rate that changes nothing, only dropout sets the two losses of an epoch apart."""
    model = random_bert(tiny_config(hidden_dropout_prob=0.5))
    data = random_encoded(31, model.config)
    for result in fit_tiny(model, data, data, epochs=3, learning_rate=1e-30, weight_decay=0.0):
        assert abs(result.train_loss - result.validation.loss) > 1e-3


def test_only_what_requires_a_gradient_moves() -> None:
    model = adapted_bert()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit_tiny(model, random_encoded(24, model.config), random_encoded(8, model.config, seed=1))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("learning_rate", [1e30, 1e38])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_batch(learning_rate: float) -> None:
    model = random_bert(tiny_config())
    with pytest.raises(Failure, match=r"the loss or a gradient is (nan|inf) at batch \d+ of epoch 1/3; lower --learning-rate"):
        fit_tiny(
            model, random_encoded(60, model.config), random_encoded(8, model.config), epochs=3, learning_rate=learning_rate
        )


def test_a_model_that_diverges_with_its_last_step_is_a_failure_too() -> None:
    """The loss of the last batch is computed before the step that ruins the weights; only the validation sees it."""
    model = random_bert(tiny_config())
    one_batch = random_encoded(2, model.config)
    with pytest.raises(Failure, match="the validation loss is nan after epoch 1; lower --learning-rate"):
        fit_tiny(model, one_batch, one_batch, epochs=1, learning_rate=1e38)


def test_training_in_bf16_keeps_the_weights_in_fp32() -> None:
    weights, results = trained(0, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert math.isfinite(results[-1].validation.loss)


def test_the_training_loss_is_the_mean_over_texts_not_over_batches() -> None:
    """With a learning rate that changes nothing, both losses are the same sum over the same texts."""
    model = random_bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    data = random_encoded(31, model.config)
    (result,) = fit_tiny(model, data, data, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    assert result.train_loss == pytest.approx(result.validation.loss, rel=1e-5)
    assert result.samples_per_s == pytest.approx(31 / result.seconds)


def test_a_cap_on_the_rows_of_a_batch_is_heeded() -> None:
    model = random_bert(CONFIG)
    plan = Plan(
        epochs=2,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup_share=0.0,
        tokens_per_batch=64,
        batch_rows=3,
        dtype=torch.float32,
        seed=0,
    )
    training = Training(model, random_encoded(20, CONFIG), random_encoded(4, CONFIG), plan)
    assert [max(map(len, batches)) for batches in training.batches] == [3, 3]
    assert [sorted(row for batch in batches for row in batch) for batches in training.batches] == [list(range(20))] * 2


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_of_every_step_is_that_of_the_schedule(schedule: str) -> None:
    model = random_bert(CONFIG)
    data = random_encoded(40, CONFIG)
    rates: list[float] = []
    plan: dict[str, Any] = {"schedule": schedule, "epochs": 2, "warmup_share": 0.2, "learning_rate": 0.25}
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        fit_tiny(model, data, data, **plan)
    finally:
        hook.remove()
    steps, warmup = len(rates), max(1, round(0.2 * len(rates)))
    assert steps > 10
    assert rates[:warmup] == pytest.approx([0.25 * (step + 1) / warmup for step in range(warmup)])
    falling = [0.25 * (steps - step) / (steps - warmup) for step in range(warmup, steps)]
    assert rates[warmup:] == pytest.approx(falling if schedule == "linear" else [0.25] * (steps - warmup))


def test_a_batch_that_does_not_fit_into_memory_is_a_failure_that_names_the_remedy() -> None:
    """The hook asks torch for a pebibyte, which no machine has: the error is torch's own."""
    model = random_bert(CONFIG)
    model.bert.pooler.register_forward_pre_hook(lambda *_: torch.empty(1 << 50) and None)
    data = random_encoded(8, CONFIG)
    with pytest.raises(Failure, match=r"memory ran out on a batch of \d+ texts of \d+ tokens; lower --tokens-per-batch"):
        fit_tiny(model, data, data)


def test_another_error_of_torch_is_not_taken_for_a_lack_of_memory() -> None:
    model = random_bert(CONFIG)
    model.bert.pooler.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    data = random_encoded(8, CONFIG)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        fit_tiny(model, data, data)
