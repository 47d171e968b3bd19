"""`training.loop`: repeatable, the best epoch kept, divergence reported, the schedule that of transformers."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from contract.command import Failure
from tests.tiny import ALL_LINEARS, adapted_bert, random_bert, random_encoded, tiny_config
from training.batches import Encoded, plan_batches
from training.bert import BertForSequenceClassification
from training.loop import EpochResult, compute_logits, evaluate, fit, make_optimizer, resolve_precision, seed_everything
from training.loop import _schedule as schedule
from training.lora import inject_lora

CONFIG = tiny_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
CPU = torch.device("cpu")


def fit_tiny(model: BertForSequenceClassification, train: Encoded, validation: Encoded, **options: Any) -> list[EpochResult]:
    """`fit` with small numbers."""
    values: dict[str, Any] = {
        "epochs": 2,
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "warmup_share": 0.1,
        "tokens_per_batch": 64,
        "dtype": torch.float32,
        "seed": 0,
        "on_epoch": lambda result: None,
    }
    return fit(model, train, validation, **(values | options))


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
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    states = []
    for plan in plans:
        for rows in plan:
            model.zero_grad(set_to_none=True)
            logits = torch.cat([model(torch.tensor([data.ids[row]])) for row in rows])
            F.cross_entropy(logits, torch.tensor([data.labels[row] for row in rows])).backward()  # type: ignore[no-untyped-call]
            norm = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm()
            for parameter in model.parameters():
                if parameter.grad is not None and norm > 1:
                    parameter.grad /= norm
            optimizer.step()
            scheduler.step()
        states.append(weights_of(model))
    return states


def weights_of(model: BertForSequenceClassification) -> dict[str, Tensor]:
    """A copy of all but the key biases."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if not name.endswith("key.bias")}


@pytest.mark.parametrize("seed", [0, 3])
def test_the_weights_after_each_epoch_are_those_of_a_loop_written_out(seed: int) -> None:
    """To 1e-4, where a step moves a weight by up to 3e-3: Adam divides by gradients near 0 and enlarges their rounding.

    Key biases are left out: softmax takes no notice of them, so that their gradient is nothing but rounding.
    """
    config = tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, data = random_bert(config), random_encoded(40, config)
    states: list[dict[str, Tensor]] = []

    def record(_: EpochResult) -> None:
        states.append(weights_of(model))

    fit_tiny(model, data, data, epochs=3, seed=seed, on_epoch=record)
    expected = written_out(random_bert(config).train(), data, epochs=3, seed=seed)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0.0)


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
    with pytest.raises(Failure, match=r"the loss is (nan|inf) at batch \d+ of epoch 1/3; lower --learning-rate"):
        fit_tiny(
            model, random_encoded(60, model.config), random_encoded(8, model.config), epochs=3, learning_rate=learning_rate
        )


def test_a_model_that_diverges_with_its_last_step_is_a_failure_too() -> None:
    """The loss of the last batch is computed before the step that ruins the weights; only the validation sees it."""
    model = random_bert(tiny_config())
    two_batches = random_encoded(2, model.config)
    with pytest.raises(Failure, match="the validation loss is nan after epoch 1; lower --learning-rate"):
        fit_tiny(model, two_batches, two_batches, epochs=1, tokens_per_batch=1, learning_rate=1e38, warmup_share=0.0)


@pytest.mark.parametrize(("total", "share"), [(10, 0.3), (100, 0.06), (7, 0.5), (3, 0.0), (1, 0.0), (2, 0.9)])
def test_the_learning_rate_follows_the_linear_schedule_of_transformers(total: int, share: float) -> None:
    warmup = max(1, round(total * share))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total).lr_lambdas[0]
    assert [schedule(step, warmup, total) for step in range(total + 1)] == [expected(step) for step in range(total + 1)]


def test_the_learning_rate_rises_from_0_to_its_peak_and_falls_to_0() -> None:
    assert [schedule(step, 2, 6) for step in range(7)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    model = adapted_bert()
    decayed, others = make_optimizer(model, learning_rate=0.5, weight_decay=0.25).param_groups
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"], others["lr"]) == (0.25, 0.0, 0.5, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in others["params"]} == {"classifier.bias"}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        name for name in names.values() if name.endswith(("lora_A", "lora_B")) or name == "classifier.weight"
    }
    whole = make_optimizer(random_bert(tiny_config()), learning_rate=0.5, weight_decay=0.25).param_groups[1]["params"]
    assert len(whole) == 2 + 2 * (6 + 4) + 2  # LayerNorm of the embeddings; each layer's biases and LayerNorms; pooler, head
    assert all(parameter.ndim == 1 for parameter in whole)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_takes_bf16_only_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    """The capabilities are patched because one machine has one kind of CPU."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == expected


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16
    assert resolve_precision("fp32", torch.device("cuda")) == torch.float32
    assert resolve_precision("auto", CPU) in {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("budget", [1, 30, 100_000])
def test_logits_come_in_the_order_of_the_rows_whatever_the_batches(budget: int) -> None:
    model = random_bert(tiny_config())
    encoded = random_encoded(40, model.config)
    logits = compute_logits(model.train(), encoded, tokens_per_batch=budget)
    assert not model.training
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([ids])) for ids in encoded.ids])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0.0)


def test_logits_in_bf16_are_returned_as_fp32_and_differ_by_rounding() -> None:
    model = random_bert(tiny_config())
    encoded = random_encoded(20, model.config)
    exact = compute_logits(model, encoded, tokens_per_batch=64)
    rounded = compute_logits(model, encoded, tokens_per_batch=64, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.15, rtol=0.0)  # of logits of about 1


def test_training_in_bf16_keeps_the_weights_in_fp32() -> None:
    weights, results = trained(0, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert math.isfinite(results[-1].validation.loss)


def test_evaluation_is_the_mean_loss_over_all_rows_and_the_share_of_hits() -> None:
    model = random_bert(tiny_config())
    encoded = random_encoded(33, model.config)
    metrics = evaluate(model, encoded, tokens_per_batch=16, dtype=torch.float32, progress="")
    logits, labels = compute_logits(model, encoded, tokens_per_batch=999), torch.tensor(encoded.labels)
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert metrics.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics.samples == 33


def test_the_training_loss_is_the_mean_over_texts_not_over_batches() -> None:
    """With a learning rate that changes nothing, both losses are the same sum over the same texts."""
    model = random_bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    data = random_encoded(31, model.config)
    (result,) = fit_tiny(model, data, data, epochs=1, learning_rate=1e-30, weight_decay=0.0)
    assert result.train_loss == pytest.approx(result.validation.loss, rel=1e-5)
    assert result.samples_per_s == pytest.approx(31 / result.seconds)
