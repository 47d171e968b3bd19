"""`training.fake_quantization`: the grids, gradients that go straight through them, and ranges as the layers see them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import padded_batch, random_bert, random_encoded, tiny_config
from training.batches import Encoded
from training.fake_quantization import (
    INPUT_LEVELS,
    WEIGHT_LEVELS,
    QuantizedLinear,
    fake_quantize,
    input_grid,
    observe_inputs,
    quantized_linears,
    round_weight,
    weight_scales,
)
from training.ranges import BINS, PERCENTILES, RangeObserver

RANGE = (-1.0, 3.0)


def rounding_only(inputs: int) -> QuantizedLinear:
    """A layer whose weight is the identity, which its grid holds exactly."""
    base = nn.Linear(inputs, inputs, bias=False)
    nn.init.eye_(base.weight)
    return QuantizedLinear(base, RANGE)


def test_an_input_is_rounded_to_256_steps_of_its_range_and_cut_at_its_ends() -> None:
    x = torch.linspace(-2, 4, 1001)
    rounded = rounding_only(1001)(x)
    step = 4 / INPUT_LEVELS
    assert len(rounded.unique()) == INPUT_LEVELS + 1
    inside = (x >= RANGE[0]) & (x <= RANGE[1])
    assert (rounded - x)[inside].abs().max() <= 0.5001 * step
    assert abs(rounded.min().item() - RANGE[0]) <= step
    assert abs(rounded.max().item() - RANGE[1]) <= step
    assert rounding_only(1)(torch.zeros(1)).item() == 0, "padding and GELU's zeros are exact"


def test_the_gradient_of_an_input_is_1_inside_the_range_and_0_outside() -> None:
    x = torch.tensor([-5.0, -1.5, -0.9, 0.0, 0.013, 2.9, 3.5, 100.0], requires_grad=True)
    rounding_only(8)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_the_gradient_of_a_weight_is_that_of_the_unrounded_layer() -> None:
    base = nn.Linear(5, 7)
    layer = QuantizedLinear(base, (-8.0, 8.0))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    layer(x).square().sum().backward()
    assert base.weight.grad is not None
    assert base.weight.grad is layer.weight.grad, "the parameters are those of the layer that was wrapped"
    grid, zero = input_grid((-8.0, 8.0))
    rounded = torch.fake_quantize_per_tensor_affine(x, grid, zero, 0, INPUT_LEVELS)
    wanted = 2 * (rounded @ round_weight(base.weight).T + base.bias).T @ rounded
    torch.testing.assert_close(base.weight.grad, wanted.detach())


def test_a_weight_has_64_steps_on_each_side_and_a_scale_for_each_output() -> None:
    weight = torch.tensor([[0.5, -1.0, 0.004], [64.0, 3.4, -3.6], [0.0, 0.0, 0.0]])
    assert weight_scales(weight).tolist() == [1 / WEIGHT_LEVELS, 1.0, 1.0]
    assert round_weight(weight).tolist() == [[0.5, -1.0, 0.0], [64.0, 3.0, -4.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("limits", "grid"), [((0.0, 0.0), (1.0, 0)), ((0.0, 255.0), (1.0, 0)), ((-255.0, 0.0), (1.0, 255))])
def test_the_grid_of_a_range(limits: tuple[float, float], grid: tuple[float, int]) -> None:
    assert input_grid(limits) == grid


def test_the_linear_layers_of_the_encoder_round_and_nothing_else() -> None:
    model = random_bert(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    paths = set(quantized_linears(model))
    assert len(paths) == 6 * 2
    assert not any("pooler" in path or "classifier" in path for path in paths)
    fake_quantize(model, dict.fromkeys(paths, (-4.0, 4.0)))
    rounding = {path for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert rounding == paths
    state = model.state_dict()
    assert state.keys() == before.keys(), "a checkpoint has no other tensors"
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_other_ranges_replace_those_before() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [5, 9])
    paths = list(quantized_linears(model))

    def answer(limit: float) -> Tensor:
        fake_quantize(model, dict.fromkeys(paths, (-limit, limit)))
        with torch.no_grad():
            return model(ids, mask)  # type: ignore[no-any-return]

    first = answer(4.0)
    assert not torch.equal(first, answer(1.0))
    assert torch.equal(first, answer(4.0))


@pytest.mark.parametrize("extra", [True, False])
def test_ranges_of_another_model_are_refused(extra: bool) -> None:
    model = random_bert(tiny_config())
    paths = [*quantized_linears(model), "bert.encoder.layer.9.output.dense"]
    with pytest.raises(ValueError, match=r"not those of this model: bert\.encoder\.layer\.\d"):
        fake_quantize(model, dict.fromkeys(paths if extra else paths[:3], (-1.0, 1.0)))


def test_layers_that_read_one_tensor_have_one_range_and_the_last_query_reads_the_first_token_alone() -> None:
    model = random_bert(tiny_config())
    found = observe_inputs(model, random_encoded(20, model.config), progress=False)
    assert list(found) == list(PERCENTILES)
    for ranges in found.values():
        query, key, value = (
            [ranges[f"bert.encoder.layer.{layer}.attention.self.{name}"] for layer in range(2)]
            for name in ("query", "key", "value")
        )
        assert key == value
        assert query[0] == key[0]
        assert query[1] != key[1]
        assert list(ranges) == list(quantized_linears(model))


def test_padding_does_not_widen_a_range() -> None:
    model = random_bert(tiny_config())
    short = random_encoded(6, model.config, longest=4)
    apart = [observe_inputs(model, Encoded([row], [], [False]), progress=False)["min-max"] for row in short.ids]
    together = observe_inputs(model, short, progress=False)["min-max"]
    for path, (low, high) in together.items():
        assert low == pytest.approx(min(ranges[path][0] for ranges in apart), abs=1e-5)
        assert high == pytest.approx(max(ranges[path][1] for ranges in apart), abs=1e-5)


def test_a_percentile_cuts_both_ends_alike_to_a_bin() -> None:
    observer = RangeObserver()
    values = np.random.default_rng(0).normal(1.0, 2.0, 200_000)
    for _ in observer.passes():
        for part in np.array_split(values, 7):
            observer.see("x", part)
    found = observer.ranges()
    bin_width = np.ptp(values) / BINS
    for name, percent in PERCENTILES.items():
        low, high = found[name]["x"]
        allowed = len(values) * (1 - percent / 100) / 2
        for outside, one_bin_less in ((values < low, values <= low + bin_width), (values > high, values >= high - bin_width)):
            assert outside.sum() <= allowed + 1e-6
            assert one_bin_less.sum() >= allowed


def test_values_that_are_not_finite_are_refused() -> None:
    observer = RangeObserver()
    with pytest.raises(ValueError, match="finite"):
        for _ in observer.passes():
            observer.see("x", np.array([1.0, math.inf]))
