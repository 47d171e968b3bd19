"""`training.lora` against PEFT on the same weights, then what is frozen, what is counted, what is refused."""

from __future__ import annotations

import math
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import ALL_LINEARS, adapted_bert, padded_batch, random_bert, tiny_config, transformers_twin
from training.bert import BertForSequenceClassification, BertModel
from training.bert_config import BertConfig
from training.lora import LoraLinear, count_parameters, inject_lora, lora_modules

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


def peft_twin(adapted: BertForSequenceClassification, base: BertForSequenceClassification, **options: Any) -> Any:
    """transformers' model with PEFT's adapters: the weights of `base`, the A and B of `adapted`, the head trainable."""
    config = peft.LoraConfig(lora_dropout=0.0, modules_to_save=["classifier"], **options)
    model = peft.get_peft_model(transformers_twin(base), config)
    modules = dict(model.base_model.model.named_modules())
    with torch.no_grad():
        for path, module in lora_modules(adapted):
            modules[path].lora_A["default"].weight.copy_(module.lora_A)
            modules[path].lora_B["default"].weight.copy_(module.lora_B)
    return model.eval()


@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [(["query", "value"], 8, 8.0), (["query"], 1, 5.0), (["key", "output.dense"], 3, 1.0), (list(ALL_LINEARS), 4, 16.0)],
)
def test_logits_and_gradients_equal_peft(targets: list[str], rank: int, alpha: float) -> None:
    base, model = random_bert(tiny_config()), adapted_bert(targets=targets, rank=rank, alpha=alpha)
    twin = peft_twin(model, base, r=rank, lora_alpha=alpha, target_modules=targets)
    ids, mask = padded_batch(model.config, [9, 4, 7])
    logits, expected = model(ids, mask), twin(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(logits, base(ids, mask), atol=0.1), "the adapters moved nothing"
    torch.testing.assert_close(logits, expected, **TOLERANCE)

    labels = torch.tensor([0, 2, 1])
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    F.cross_entropy(expected, labels).backward()  # type: ignore[no-untyped-call]
    theirs = dict(twin.base_model.model.named_parameters())
    for path, module in lora_modules(model):
        for part, parameter in (("lora_A", module.lora_A), ("lora_B", module.lora_B)):
            torch.testing.assert_close(parameter.grad, theirs[f"{path}.{part}.default.weight"].grad, **TOLERANCE)


@pytest.mark.parametrize("targets", [["query", "value"], ["key"], ["attention.output.dense"], ["dense"], list(ALL_LINEARS)])
def test_targets_fit_the_modules_that_peft_adapts(targets: list[str]) -> None:
    twin = transformers_twin(random_bert(tiny_config()))
    expected = peft.get_peft_model(twin, peft.LoraConfig(r=2, target_modules=targets)).targeted_module_names
    assert sorted(inject_lora(random_bert(tiny_config()), targets, rank=2, alpha=2.0)) == sorted(expected)


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [9, 4])
    before = model(ids, mask)
    inject_lora(model, ALL_LINEARS, rank=4, alpha=32.0)
    assert torch.equal(model(ids, mask), before)


def test_a_is_uniform_within_one_over_the_root_of_its_fan_in_and_b_is_zero() -> None:
    """Kaiming uniform with a = sqrt(5); a published implementation took the rank for the fan-in."""
    torch.manual_seed(0)
    module = LoraLinear(nn.Linear(400, 50), rank=25, alpha=1.0)
    bound = 1 / math.sqrt(400)
    assert module.lora_A.shape == (25, 400)
    assert module.lora_B.shape == (50, 25)
    assert 0.99 * bound < module.lora_A.abs().max().item() <= bound
    assert module.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert torch.equal(module.lora_B, torch.zeros(50, 25))


def test_the_layer_below_an_adapter_is_frozen_with_its_bias() -> None:
    module = LoraLinear(nn.Linear(5, 4), rank=2, alpha=1.0)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {"lora_A", "lora_B"}


@pytest.mark.parametrize("alpha", [1.0, 3.0, 24.0])
def test_the_update_is_scaled_by_alpha_over_rank(alpha: float) -> None:
    module = LoraLinear(nn.Linear(5, 4), rank=3, alpha=alpha)
    nn.init.normal_(module.lora_B)
    x = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = module.base(x) + alpha / 3 * x @ module.lora_A.T @ module.lora_B.T
    torch.testing.assert_close(module(x), expected, **TOLERANCE)


def test_dropout_acts_before_a_only_and_only_in_training() -> None:
    module = LoraLinear(nn.Linear(200, 200), rank=200, alpha=200.0, dropout=0.5)
    module.lora_A.data, module.lora_B.data = torch.eye(200), torch.eye(200)
    x = torch.ones(3, 200)
    update = (module(x) - module.base(x)).detach()
    assert update.round(decimals=3).unique().tolist() == [0.0, 2.0]
    torch.testing.assert_close(module.eval()(x), module.base(x) + x, **TOLERANCE)


@pytest.mark.parametrize(
    ("options", "trainable"),
    [
        ({"rank": 8, "targets": ["query", "value"]}, 296_450),
        ({"rank": 1, "targets": ["query", "value"]}, 38_402),
        ({"rank": 4, "targets": ["query", "value"]}, 148_994),
        ({"rank": 8, "targets": ["query", "value"], "layers": [8, 9, 10, 11]}, 99_842),
    ],
)
def test_bert_base_trains_exactly_the_published_numbers_of_parameters(options: dict[str, Any], trainable: int) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        inject_lora(model, alpha=16.0, **options)
    head = 2 * 768 + 2
    assert count_parameters(model) == (trainable, 109_483_778 + trainable - head)


def test_rank_8_on_query_and_value_of_bert_base_has_109_778_690_parameters_in_all() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        inject_lora(model, ["query", "value"], rank=8, alpha=16.0)
    assert count_parameters(model)[1] == 109_778_690


def test_an_optimizer_step_moves_adapters_and_head_and_nothing_else() -> None:
    model = adapted_bert().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids, mask = padded_batch(model.config, [9, 4, 7])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    F.cross_entropy(model(ids, mask), torch.tensor([0, 1, 2])).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {f"{path}.{part}" for path, _ in lora_modules(model) for part in ("lora_A", "lora_B")}
    assert moved == adapters | {"classifier.weight", "classifier.bias"}
    assert {f"{path}.base.bias" for path, _ in lora_modules(model)} <= set(before)


class Wrapped(nn.Module):
    """A text model inside another one, beside a second linear tower, as in a text-and-table classifier."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.tower = nn.ModuleDict({"text": BertModel(config), "table": nn.Linear(5, 6)})
        self.classifier = nn.Linear(config.hidden_size + 6, config.num_labels)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_every_adapter_has_the_requested_alpha_and_dropout(wrapped: bool) -> None:
    """A published implementation swapped the two at every second level of its recursion."""
    config = tiny_config()
    model = Wrapped(config) if wrapped else BertForSequenceClassification(config)
    paths = inject_lora(model, [*ALL_LINEARS, *(["table"] if wrapped else [])], rank=2, alpha=32.0, dropout=0.125)
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(f"{path}.base" for path in paths) == sorted(set(linears) - {"classifier"})
    assert len(paths) == config.num_hidden_layers * 6 + 1 + wrapped
    settings = {(module.rank, module.alpha, module.dropout.p) for _, module in lora_modules(model)}
    assert settings == {(2, 32.0, 0.125)}
    assert [path for path, _ in lora_modules(model)] == paths


def test_glob_patterns_fit_whole_paths() -> None:
    model = random_bert(tiny_config(num_hidden_layers=12))
    paths = inject_lora(model, ["bert.encoder.layer.1*.intermediate.dense", "*.1.attention.self.[qk]*"], rank=1, alpha=1.0)
    assert paths == [
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.1.attention.self.key",
        "bert.encoder.layer.1.intermediate.dense",
        "bert.encoder.layer.10.intermediate.dense",
        "bert.encoder.layer.11.intermediate.dense",
    ]


def test_layer_1_is_not_layer_10() -> None:
    """A published evaluation chose layers by substring and switched on 10 and 11 with 1."""
    model = random_bert(tiny_config(num_hidden_layers=12))
    paths = inject_lora(model, ["query", "dense"], rank=1, alpha=1.0, layers=[1])
    assert paths == [
        f"bert.encoder.layer.1.{part}"
        for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    ]


@pytest.mark.parametrize("target", ["er", "uery", "encoder", "LayerNorm", "classifier", "word_embeddings", ""])
def test_a_target_that_fits_no_linear_layer_is_named(target: str) -> None:
    model = random_bert(tiny_config())
    with pytest.raises(ValueError, match=f"LoRA target '{target}' fits no linear layer"):
        inject_lora(model, ["query", target], rank=2, alpha=2.0)
    assert all(parameter.requires_grad for parameter in model.parameters()), "the refused call changed the model"


@pytest.mark.parametrize("layers", [[2], [0, 7], [-1]])
def test_layers_that_the_model_lacks_are_named(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"LoRA layers \[{layers[-1]}\] have none .* the model has 0 to 1"):
        inject_lora(random_bert(tiny_config()), ["query"], rank=2, alpha=2.0, layers=layers)


@pytest.mark.parametrize("options", [{"targets": []}, {"targets": ["query"], "layers": []}])
def test_an_empty_choice_is_refused_since_nothing_would_be_adapted(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no linear layer"):
        inject_lora(random_bert(tiny_config()), rank=2, alpha=2.0, **options)


@pytest.mark.parametrize("rank", [0, -1, 0.2, True, "8", None])
def test_a_rank_that_is_no_positive_integer_is_refused(rank: Any) -> None:
    message = "must be an integer of at least 1"
    with pytest.raises(ValueError, match=message):
        inject_lora(random_bert(tiny_config()), ["query"], rank=rank, alpha=2.0)
    with pytest.raises(ValueError, match=message):
        LoraLinear(nn.Linear(2, 2), rank=rank, alpha=2.0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 16.0])
def test_a_dropout_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match=f"LoRA dropout is {dropout}"):
        inject_lora(random_bert(tiny_config()), ["query"], rank=2, alpha=2.0, dropout=dropout)


def test_a_string_of_targets_is_refused() -> None:
    with pytest.raises(TypeError, match=r"give a list of names, as \['query'\]"):
        inject_lora(random_bert(tiny_config()), "query", rank=2, alpha=2.0)


def test_a_second_injection_is_refused() -> None:
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        inject_lora(adapted_bert(targets=["query"]), ["value"], rank=2, alpha=2.0)


def test_adapters_take_the_dtype_of_their_layer() -> None:
    module = LoraLinear(nn.Linear(6, 4, dtype=torch.bfloat16), rank=2, alpha=2.0)
    parts: list[Tensor] = [module.lora_A, module.lora_B, module(torch.ones(1, 6, dtype=torch.bfloat16))]
    assert {part.dtype for part in parts} == {torch.bfloat16}
