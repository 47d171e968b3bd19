"""`training.optimizer`: the learning rate of transformers' schedules, one step ahead in the warm-up; what is decayed."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.tiny import adapted_bert, random_bert, tiny_config
from training.masked import MaskedLinear
from training.optimizer import learning_rate_factor, make_optimizer
from training.strategies import apply_strategy


def factors(total: int, warmup: int, schedule: str) -> list[float]:
    """Of every step of a training."""
    return [learning_rate_factor(step, warmup=warmup, total=total, schedule=schedule) for step in range(total)]


@pytest.mark.parametrize(("total", "share"), [(10, 0.3), (100, 0.06), (7, 0.5), (3, 0.0), (1, 0.0), (2, 0.9)])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_learning_rate_follows_the_schedules_of_transformers(schedule: str, total: int, share: float) -> None:
    """In the warm-up one step ahead of them: their first step has a rate of 0 and moves nothing."""
    warmup = max(1, round(total * share))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = (
        transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
        if schedule == "linear"
        else transformers.get_constant_schedule_with_warmup(optimizer, warmup)
    ).lr_lambdas[0]
    ahead = [theirs(step) for step in range(1, warmup)] + [1.0]
    assert factors(total, warmup, schedule) == ahead + [theirs(step) for step in range(warmup, total)]


def test_the_learning_rate_rises_to_its_peak_and_falls_towards_0() -> None:
    assert factors(6, 2, "linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert factors(6, 2, "constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_no_step_is_wasted_on_a_rate_of_0() -> None:
    assert min(factors(50, 3, "linear")) > 0
    assert factors(1, 1, "linear") == [1.0]


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


def test_the_trained_numbers_of_a_masked_matrix_are_decayed_as_the_matrix_would_be() -> None:
    model = random_bert(tiny_config())
    apply_strategy(model, "masked")
    decayed, kept = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1).param_groups
    values = {id(module.values) for module in model.modules() if isinstance(module, MaskedLinear)}
    assert values
    assert values | {id(model.classifier.weight)} == {id(parameter) for parameter in decayed["params"]}
    assert [id(parameter) for parameter in kept["params"]] == [id(model.classifier.bias)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
