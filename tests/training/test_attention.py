"""`training.attention`: the backward that is written out equals torch's own, in values, gradients and special cases."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiny import padded_batch, random_bert, tiny_config
from training.attention import additive_mask, attend, compute_dtype

SHAPES = {
    "square": (3, 2, 7, 7, 8),
    "one query": (3, 2, 1, 7, 8),
    "one token": (2, 3, 1, 1, 4),
    "one head, one row": (1, 1, 5, 5, 16),
}
Shape = tuple[int, int, int, int, int]
Leaves = tuple[Tensor, Tensor, Tensor]


def inputs(shape: Shape, *, dtype: torch.dtype = torch.float32) -> Leaves:
    """Query [B, H, Q, K], key and value [B, H, T, K], each a leaf that wants a gradient."""
    batch, heads, queries, tokens, size = shape
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch, heads, length, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for length in (queries, tokens, tokens)
    )
    return query, key, value


def mask_of(shape: Shape, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """Every row of another length, the first one full."""
    batch, _, _, tokens, _ = shape
    lengths = torch.tensor([max(1, tokens - 2 * row) for row in range(batch)])
    return additive_mask((torch.arange(tokens) < lengths[:, None]).long(), dtype)


def gradients(output: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of a weighted sum of the output, so that no element's gradient is that of another."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(output.dtype)
    return torch.autograd.grad((output * weights).sum(), leaves)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_values_and_gradients_equal_those_of_torch(shape: Shape, masked: bool) -> None:
    leaves, mask = inputs(shape), mask_of(shape) if masked else None
    ours = attend(*leaves, mask)
    theirs = F.scaled_dot_product_attention(*leaves, attn_mask=mask)
    assert ours.grad_fn is not None
    assert "CpuAttention" in type(ours.grad_fn).__name__, "the written-out backward was not taken"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(gradients(ours, leaves), gradients(theirs, leaves), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("shape", [(2, 2, 3, 3, 2), (2, 1, 1, 4, 3)], ids=["square", "one query"])
def test_gradients_equal_finite_differences(shape: Shape, masked: bool) -> None:
    leaves = inputs(shape, dtype=torch.float64)
    mask = mask_of(shape, torch.float64) if masked else None
    assert torch.autograd.gradcheck(lambda query, key, value: attend(query, key, value, mask), leaves)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_gradients_are_right_whichever_inputs_want_one(wanted: tuple[int, ...]) -> None:
    """A LoRA on `value` alone wants no gradient of query and key in the first trained layer."""
    shape = SHAPES["square"]
    leaves, mask = inputs(shape), mask_of(shape)
    for number, leaf in enumerate(leaves):
        leaf.requires_grad_(number in wanted)
    chosen = [leaves[number] for number in wanted]
    expected = gradients(F.scaled_dot_product_attention(*leaves, attn_mask=mask), chosen)
    torch.testing.assert_close(gradients(attend(*leaves, mask), chosen), expected, atol=1e-5, rtol=0.0)


def test_inputs_that_are_no_contiguous_blocks_are_read_right() -> None:
    """As the heads come out of one matrix: [B, T, H, K] seen as [B, H, T, K]."""
    leaves = [torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in range(3)]
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    ours, theirs = attend(query, key, value, None), F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(gradients(ours, leaves), gradients(theirs, leaves), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_bf16_stays_as_near_to_fp32_as_torch_does(masked: bool) -> None:
    shape = (3, 2, 9, 9, 16)
    exact = inputs(shape)
    rounded = inputs(shape, dtype=torch.bfloat16)
    mask = mask_of(shape) if masked else None
    low = mask_of(shape, torch.bfloat16) if masked else None
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask)
    ours = attend(*rounded, low)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), expected, atol=0.03, rtol=0.0)
    for found, right in zip(gradients(ours, rounded), gradients(expected, exact), strict=True):
        torch.testing.assert_close(found.float(), right, atol=0.08, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_is_padding_alone_is_finite_forwards_and_backwards(dtype: torch.dtype) -> None:
    leaves = inputs((2, 2, 5, 5, 4), dtype=dtype)
    mask = additive_mask(torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]), dtype)
    output = attend(*leaves, mask)
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(output, leaves))


def test_padded_tokens_get_no_gradient() -> None:
    leaves = inputs((1, 2, 3, 5, 4))
    mask = additive_mask(torch.tensor([[1, 1, 1, 0, 0]]), torch.float32)
    _, key, value = gradients(attend(*leaves, mask), leaves)
    for gradient in (key, value):
        assert torch.equal(gradient[:, :, 3:], torch.zeros(1, 2, 2, 4))
        assert gradient[:, :, :3].abs().min() > 0


def test_dropout_of_the_weights_acts_and_keeps_the_mean() -> None:
    query, key, _ = inputs((1, 1, 400, 50, 4))
    ones = torch.ones(1, 1, 50, 4)
    torch.manual_seed(0)
    dropped = attend(query, key, ones, None, dropout=0.5)
    assert dropped.std() > 0.05
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


@torch.no_grad()
def test_inference_takes_torchs_own_kernel_and_gives_the_same() -> None:
    leaves, mask = inputs(SHAPES["square"]), mask_of(SHAPES["square"])
    assert torch.equal(attend(*leaves, mask), F.scaled_dot_product_attention(*leaves, attn_mask=mask))


def test_a_model_gives_the_same_logits_with_and_without_gradients() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [9, 4, 1])
    with torch.no_grad():
        expected = model(ids, mask)
    torch.testing.assert_close(model(ids, mask), expected, atol=1e-5, rtol=0.0)


def test_the_dtype_of_products_is_that_of_autocast_where_it_is_on() -> None:
    tensor = torch.zeros(1)
    assert compute_dtype(tensor) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype(tensor) == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        assert compute_dtype(tensor) == torch.float32
