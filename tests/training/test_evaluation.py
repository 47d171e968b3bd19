"""`training.evaluation`: logits in the order of the rows, metrics over all of them, bf16 where the hardware has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import random_bert, random_encoded, tiny_config
from training.evaluation import compute_logits, evaluate, resolve_precision

CPU = torch.device("cpu")


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


def test_evaluation_is_the_mean_loss_over_all_rows_and_the_share_of_hits() -> None:
    model = random_bert(tiny_config())
    encoded = random_encoded(33, model.config)
    metrics = evaluate(model, encoded, tokens_per_batch=16, dtype=torch.float32, progress="")
    logits, labels = compute_logits(model, encoded, tokens_per_batch=999), torch.tensor(encoded.labels)
    assert metrics.loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert metrics.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics.samples == 33
