"""`training.strategies`: what trains, by name, by number of parameters, and by what a step of the optimizer moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import padded_batch, random_bert, tiny_config
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.lora import count_parameters
from training.strategies import STRATEGIES, StrategyName, apply_strategy, describe_counts, lowest_trained_layer

UNCASED, CASED = BertConfig(), BertConfig(vocab_size=28_996)
OVERFLOW = BertConfig(vocab_size=82_000)
TABULAR = BertConfig(num_features=5)
TINY9 = BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, num_labels=9)
SMALL9 = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, num_labels=9)
QUERY_VALUE: dict[str, Any] = {"targets": ["query", "value"]}

PUBLISHED: dict[str, tuple[BertConfig, StrategyName, dict[str, Any], int, int]] = {
    "Stack Overflow, bert-base": (UNCASED, "full", {}, 109_483_778, 109_483_778),
    "Stack Overflow, BERTOverflow": (OVERFLOW, "full", {}, 149_018_882, 149_018_882),
    "Stack Overflow, tabular": (TABULAR, "full", {}, 109_485_326, 109_485_326),
    "Stack Overflow, LoRA r 8": (UNCASED, "lora", QUERY_VALUE | {"rank": 8}, 296_450, 109_778_690),
    "Stack Overflow, LoRA r 1": (UNCASED, "lora", QUERY_VALUE | {"rank": 1}, 38_402, 109_520_642),
    "Stack Overflow, LoRA r 8, last 4": (
        UNCASED,
        "lora",
        QUERY_VALUE | {"rank": 8, "layers": [8, 9, 10, 11]},
        99_842,
        109_582_082,
    ),
    "Yelp, none": (CASED, "none", {}, 0, 108_311_810),
    "Yelp, head": (CASED, "head", {}, 1_538, 108_311_810),
    "Yelp, first layer": (CASED, "first", {"k": 1}, 7_089_410, 108_311_810),
    "Yelp, first two layers": (CASED, "first", {"k": 2}, 14_177_282, 108_311_810),
    "Yelp, LoRA r 4": (CASED, "lora", QUERY_VALUE | {"rank": 4}, 148_994, 108_459_266),
    "Yelp, full": (CASED, "full", {}, 108_311_810, 108_311_810),
    "complaints, scratch": (SMALL9, "scratch", {}, 10_122_249, 10_122_249),
    "complaints, full": (TINY9, "full", {}, 4_387_081, 4_387_081),
    "complaints, LoRA r 8": (TINY9, "lora", QUERY_VALUE | {"rank": 8}, 9_353, 4_395_273),
}


@pytest.mark.parametrize(("config", "name", "options", "trainable", "total"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_configurations_have_their_exact_numbers_without_any_memory(
    config: BertConfig, name: StrategyName, options: dict[str, Any], trainable: int, total: int
) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
        apply_strategy(model, name, **options)
    assert count_parameters(model) == (trainable, total)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_masked_works_without_memory_too_and_trains_its_share() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(TINY9)
        apply_strategy(model, "masked", mask_share=0.2)
    matrices = [4 * 128 * 128, 2 * 128 * 512]
    share = sum(2 * round(0.2 * size) for size in (128 * 128,) * 4 + (128 * 512,) * 2) + round(0.2 * 128 * 128)
    assert count_parameters(model)[0] == share + 9 * 128 + 9
    assert share == pytest.approx(0.2 * (2 * sum(matrices) + 128 * 128), abs=13)


def deep() -> BertForSequenceClassification:
    """Four layers, so that first and last differ."""
    return random_bert(tiny_config(num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def layer(number: int) -> str:
    return f"bert.encoder.layer.{number}."


WHAT_TRAINS: dict[str, tuple[StrategyName, dict[str, Any], tuple[str, ...]]] = {
    "none": ("none", {}, ()),
    "head": ("head", {}, ("classifier.",)),
    "first 1": ("first", {"k": 1}, ("classifier.", layer(0))),
    "first 2": ("first", {"k": 2}, ("classifier.", layer(0), layer(1))),
    "last 1": ("last", {"k": 1}, ("classifier.", layer(3))),
    "last 2": ("last", {"k": 2}, ("classifier.", layer(2), layer(3))),
    "first all": ("first", {"k": 4}, ("classifier.", "bert.encoder.")),
    "last all": ("last", {"k": 4}, ("classifier.", "bert.encoder.")),
    "full": ("full", {}, ("",)),
    "scratch": ("scratch", {}, ("",)),
}


@pytest.mark.parametrize(("name", "options", "prefixes"), WHAT_TRAINS.values(), ids=WHAT_TRAINS.keys())
def test_exactly_what_the_strategy_names_trains_and_moves(
    name: StrategyName, options: dict[str, Any], prefixes: tuple[str, ...]
) -> None:
    """First is the input side and last is the head side; published code said "first layer" and left it open which."""
    model = deep()
    apply_strategy(model, name, **options)
    expected = {key for key, _ in model.named_parameters() if key.startswith(prefixes)} if prefixes else set()
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == expected
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    if expected:
        ids, mask = padded_batch(model.config, [9, 4, 7])
        F.cross_entropy(model.train()(ids, mask), torch.tensor([0, 1, 2])).backward()  # type: ignore[no-untyped-call]
        torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1).step()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert moved == expected


def test_the_layer_next_to_the_input_is_the_first() -> None:
    """Freezing is told by computing: with only the last layer trained, what lies below it wants no gradient."""
    for name, wants in (("first", True), ("last", False)):
        model = deep()
        apply_strategy(model, name, k=1)  # type: ignore[arg-type]
        seen: list[bool] = []
        model.bert.encoder.layer[1].register_forward_hook(lambda *given, seen=seen: seen.append(given[2].requires_grad))
        model(*padded_batch(model.config, [5, 3]))
        assert seen == [wants]


@pytest.mark.parametrize("k", [0, 5, -1])
@pytest.mark.parametrize("name", ["first", "last"])
def test_a_k_that_the_model_does_not_have_is_refused(name: StrategyName, k: int) -> None:
    model = deep()
    with pytest.raises(ValueError, match=f"k is {k}; the model has 4 layers, so that 1 to 4 can train"):
        apply_strategy(model, name, k=k)
    assert all(parameter.requires_grad for parameter in model.parameters()), "the refused call changed the model"


@pytest.mark.parametrize("rank", [0, 0.2, True])
def test_a_rank_that_is_no_positive_integer_is_refused_since_it_is_no_share_of_weights(rank: Any) -> None:
    with pytest.raises(ValueError, match=r"must be an integer of at least 1 .* not a share of the weights"):
        apply_strategy(deep(), "lora", rank=rank)


def test_an_unknown_strategy_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="the strategy is 'half'; known are none, head, first, last, lora, masked, full"):
        apply_strategy(deep(), "half")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_says_in_words_what_it_trains(name: StrategyName) -> None:
    said = apply_strategy(deep(), name, k=2, rank=3, mask_share=0.25)
    assert (
        said
        == {
            "none": "nothing",
            "head": "the head",
            "first": "the first 2 of 4 layers (the input side: 0 to 1), and the head",
            "last": "the last 2 of 4 layers (the head side: 2 to 3), and the head",
            "lora": "LoRA rank 3 on 25 linear layers, and the head",
            "masked": "25% of the weights of 25 linear layers, and the head",
            "full": "everything",
            "scratch": "everything, from random weights",
        }[name]
    )


@pytest.mark.parametrize(
    ("name", "options", "frozen"),
    [
        ("none", {}, 4),
        ("head", {}, 4),
        ("first", {"k": 1}, 0),
        ("last", {"k": 1}, 3),
        ("last", {"k": 3}, 1),
        ("lora", {}, 0),
        ("lora", {"layers": [2, 3]}, 2),
        ("lora", {"targets": ["pooler.dense"]}, 4),
        ("masked", {}, 0),
        ("full", {}, 0),
    ],
)
def test_the_frozen_layers_below_the_lowest_trained_one_are_counted(
    name: StrategyName, options: dict[str, Any], frozen: int
) -> None:
    model = deep()
    apply_strategy(model, name, **options)
    assert lowest_trained_layer(model) == frozen


def test_the_tabular_head_trains_where_the_classifier_would() -> None:
    for name in ("head", "last", "lora", "masked"):
        model = random_bert(tiny_config(num_features=2))
        apply_strategy(model, name)
        trained = {key.split(".")[0] for key, parameter in model.named_parameters() if parameter.requires_grad} - {"bert"}
        assert trained == {"tabular"}


def test_counts_are_told_with_their_share() -> None:
    model = random_bert(tiny_config())
    apply_strategy(model, "head")
    trainable, total = count_parameters(model)
    assert describe_counts(model) == f"99 of {total:,} parameters train ({99 / total:.2%})"
    assert trainable == 3 * 32 + 3
