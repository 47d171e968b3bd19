"""`training.work` and `training.explain`: what the shapes say is what torch counts, for every strategy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.command import Failure, UsageError
from tests.tiny import tiny_config
from training.attention import additive_mask
from training.bert import BertForSequenceClassification
from training.explain import Explain, Subject, check_counts, explain
from training.strategies import apply_strategy
from training.work import estimate_work

STRATEGIES: dict[str, dict[str, Any]] = {
    "head": {"strategy": "head"},
    "first 1": {"strategy": "first"},
    "last 1": {"strategy": "last"},
    "masked": {"strategy": "masked"},
    "full": {"strategy": "full"},
    "LoRA on query and value": {"strategy": "lora"},
    "LoRA on all": {"strategy": "lora", "targets": ("query", "key", "value", "dense")},
    "LoRA on the last layer": {"strategy": "lora", "layers": (1,)},
    "LoRA on the key alone": {"strategy": "lora", "targets": ("key",), "layers": (0,)},
    "LoRA on the pooler alone": {"strategy": "lora", "targets": ("bert.pooler.dense",)},
}


def options(tiny_base: Path, **changes: Any) -> Explain:
    defaults: dict[str, Any] = {"base": str(tiny_base), "batch_rows": 3, "tokens": 7, "rank": 3, "steps": 3}
    return Explain(**(defaults | changes))


@pytest.mark.parametrize("choice", STRATEGIES.values(), ids=list(STRATEGIES))
def test_the_shapes_say_what_torch_counts(tiny_base: Path, choice: dict[str, Any]) -> None:
    subject = Subject(options(tiny_base, **choice), choice["strategy"])
    forward, backward = subject.count()
    assert forward == subject.work.forward
    assert backward == subject.work.activation_gradient + subject.work.weight_gradient


def test_full_is_three_forwards_but_for_what_the_input_needs_no_gradient_of() -> None:
    model = BertForSequenceClassification(tiny_config())
    apply_strategy(model, "full")
    work = estimate_work(model, rows=4, tokens=9)
    assert work.total == pytest.approx(
        3 * work.forward, rel=0.1
    )  # attention has two products that nobody multiplies weights in


def test_a_cached_prefix_is_not_computed() -> None:
    model = BertForSequenceClassification(tiny_config())
    apply_strategy(model, "last", k=1)
    whole, behind = (estimate_work(model, rows=4, tokens=9, start=start) for start in (0, 1))
    assert behind.forward < whole.forward / 2
    assert (behind.activation_gradient, behind.weight_gradient) == (whole.activation_gradient, whole.weight_gradient)


def test_other_counts_than_the_shapes_say_are_a_failure(tiny_base: Path) -> None:
    subject = Subject(options(tiny_base, strategy="full"), "full")
    subject.work = dataclasses.replace(subject.work, weight_gradient=2 * subject.work.weight_gradient)
    with pytest.raises(Failure, match=r"backward: torch counted .* the shapes say"):
        check_counts(subject)


def test_the_explanation_names_the_limit_and_what_was_measured(tiny_base: Path) -> None:
    text = explain(options(tiny_base, strategy="lora", layers=(1,)))
    work = {name: Subject(options(tiny_base, strategy="lora", layers=(1,)), name).work.total for name in ("lora", "full")}
    assert f"against full: {work['full'] / work['lora']:.2f}x by operations" in text
    assert "backward stops above the first 1 of 2 layers" in text
    assert text.count("expected") == 2


def test_memory_is_four_bytes_a_gradient_and_eight_a_moment(tiny_base: Path) -> None:
    subject = Subject(options(tiny_base, strategy="head"), "head")
    subject.time()
    memory = subject.memory()
    trained = sum(parameter.numel() for parameter in subject.model.parameters() if parameter.requires_grad)
    assert memory.gradients == 4 * trained
    assert 8 * trained <= memory.optimizer <= 8 * trained + 16  # and a step counter of each tensor


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "none"}, "there is no step to explain"),
        ({"strategy": "full", "steps": 2}, "--steps is 2; it must be at least 3"),
        ({"strategy": "full", "tokens": 0}, "--tokens is 0"),
    ],
)
def test_what_cannot_be_explained_is_refused(tiny_base: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        options(tiny_base, **changes)


def test_more_tokens_than_the_model_reads_are_refused(tiny_base: Path) -> None:
    with pytest.raises(UsageError, match="--tokens is 41; the model reads at most 40"):
        explain(options(tiny_base, strategy="full", tokens=41))


def test_the_mask_has_the_dtype_that_it_is_asked_for() -> None:
    mask = additive_mask(torch.tensor([[1, 0]]), torch.bfloat16)
    assert mask is not None and mask.dtype == torch.bfloat16
