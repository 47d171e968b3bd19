"""`training.masked`: exactly the drawn weights train, all others stay bit for bit, and as little is kept for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import padded_batch, random_bert, tiny_config
from training.bert import BertForSequenceClassification
from training.masked import MaskedLinear, unmask
from training.strategies import apply_strategy

HEAD = {"classifier.weight", "classifier.bias"}


def linear() -> nn.Linear:
    """17 features in, 11 out, far from zero."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(17, 11)
    layer.weight.data = torch.randn(11, 17, generator=generator)
    layer.bias.data = torch.randn(11, generator=generator)
    return layer


def masked_linear(share: float = 0.3, *, seed: int = 0) -> MaskedLinear:
    return MaskedLinear(linear(), share=share, generator=torch.Generator().manual_seed(seed))


def masked_bert(share: float = 0.2, *, seed: int = 0) -> BertForSequenceClassification:
    model = random_bert(tiny_config())
    apply_strategy(model, "masked", mask_share=share, seed=seed)
    return model


def modules(model: nn.Module) -> dict[str, MaskedLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, MaskedLinear)}


def take_steps(model: BertForSequenceClassification, steps: int = 2) -> torch.optim.Optimizer:
    """AdamW, with a decay that would move every weight it is given."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01, weight_decay=0.1)
    ids, mask = padded_batch(model.config, [9, 4, 7])
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(ids, mask), torch.tensor([0, 1, 2])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return optimizer


def plain_state(model: BertForSequenceClassification) -> dict[str, Tensor]:
    """What the model computes with, under the names of plain BERT."""
    unmask(model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_fresh_mask_changes_nothing() -> None:
    x = torch.randn(3, 5, 17, generator=torch.Generator().manual_seed(1))
    assert torch.equal(masked_linear()(x), linear()(x))


def test_output_and_gradient_are_those_of_the_whole_layer_at_the_positions() -> None:
    masked, whole = masked_linear(), linear()
    x = torch.randn(3, 17, generator=torch.Generator().manual_seed(1))
    masked(x).square().sum().backward()
    whole(x).square().sum().backward()
    assert whole.weight.grad is not None
    assert masked.values.grad is not None
    torch.testing.assert_close(masked.values.grad, whole.weight.grad.flatten()[masked.positions], atol=1e-5, rtol=0.0)
    assert masked.base.weight.grad is None
    assert masked.base.bias.grad is None


@pytest.mark.parametrize(("share", "count"), [(0.2, 37), (0.5, 94), (1.0, 187), (1e-9, 1)])
def test_the_share_is_that_of_the_matrix_and_at_least_one_weight(share: float, count: int) -> None:
    masked = masked_linear(share)
    assert masked.values.shape == masked.positions.shape == (count,)
    assert len(set(masked.positions.tolist())) == count
    assert 0 <= int(masked.positions.min()) <= int(masked.positions.max()) < 187


@pytest.mark.parametrize("share", [0.0, -0.2, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        masked_linear(share)
    model = random_bert(tiny_config())
    with pytest.raises(ValueError, match="it must be above 0 and at most 1"):
        apply_strategy(model, "masked", mask_share=share)
    assert not modules(model), "the refused call changed the model"


def test_every_matrix_of_the_encoder_and_the_pooler_has_its_share() -> None:
    model = masked_bert(0.2)
    found = modules(model)
    assert len(found) == 2 * 6 + 1
    assert all(len(module.values) == round(0.2 * module.base.weight.numel()) for module in found.values())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{path}.values" for path in found} | HEAD


def test_the_same_seed_draws_the_same_positions_and_another_others() -> None:
    first, same, other = (modules(masked_bert(seed=seed)) for seed in (4, 4, 5))
    for path, module in first.items():
        assert torch.equal(module.positions, same[path].positions)
        assert not torch.equal(module.positions, other[path].positions)
    query, key = (f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key"))
    assert not torch.equal(first[query].positions, first[key].positions), "one mask for all matrices"


def test_training_moves_exactly_the_drawn_weights_and_the_head() -> None:
    model = masked_bert()
    before = {name: tensor.clone() for name, tensor in random_bert(tiny_config()).state_dict().items()}
    positions = {f"{path}.weight": module.positions for path, module in modules(model).items()}
    take_steps(model)
    after = plain_state(model)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        moved = (tensor != before[name]).flatten().nonzero().flatten()
        if name in positions:
            assert set(moved.tolist()) <= set(positions[name].tolist()), name
            assert len(moved) > 0.9 * len(positions[name]), name
        else:
            assert (len(moved) > 0) == (name in HEAD), name


def test_the_optimizer_keeps_no_more_than_the_trained_numbers() -> None:
    model = masked_bert(0.05)
    optimizer = take_steps(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    kept = sum(tensor.numel() for state in optimizer.state.values() for tensor in state.values() if tensor.ndim)
    assert kept == 2 * trained
    assert trained < 0.06 * sum(module.base.weight.numel() for module in modules(model).values()) + 99


@torch.no_grad()
def test_the_unmasked_model_is_plain_bert_with_the_same_logits() -> None:
    model = masked_bert()
    with torch.enable_grad():
        take_steps(model)
    ids, mask = padded_batch(model.config, [9, 4])
    before = model.eval()(ids, mask)
    unmask(model)
    assert not modules(model)
    assert model.state_dict().keys() == random_bert(tiny_config()).state_dict().keys()
    assert torch.equal(model(ids, mask), before)
    assert not torch.allclose(before, random_bert(tiny_config())(ids, mask), atol=1e-3)
