"""`training.bert` beyond the published architecture: heads for each layer, numbers beside the text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import padded_batch, random_bert, tiny_config
from training.bert import BertLayer
from training.bert_config import BertConfig

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


@torch.no_grad()
def attention_by_hand(layer: BertLayer, hidden: Tensor, heads: int) -> Tensor:
    """The context of one row [T, D], head by head."""
    parts, size = layer.attention.self, hidden.shape[1] // heads
    query, key, value = (getattr(parts, name)(hidden) for name in ("query", "key", "value"))
    found = []
    for start in range(0, hidden.shape[1], size):
        columns = slice(start, start + size)
        found.append(torch.softmax(query[:, columns] @ key[:, columns].T / size**0.5, dim=1) @ value[:, columns])
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("heads", [(2, 8), (8, 2), (1, 32)])
@torch.no_grad()
def test_layers_with_heads_of_their_own_compute_what_is_written_out(heads: tuple[int, ...]) -> None:
    model = random_bert(tiny_config(num_attention_heads=heads))
    ids, _ = padded_batch(model.config, [7])
    hidden = model.bert.embeddings(ids, None)[0]
    for number, count in enumerate(heads):
        layer = model.bert.encoder.layer[number]
        assert isinstance(layer, BertLayer)
        context = layer.attention.self(hidden[None], hidden[None], None)[0]
        by_hand = attention_by_hand(layer, hidden, count)
        torch.testing.assert_close(context, by_hand, **TOLERANCE)
        attended = layer.attention.output(by_hand[None], hidden[None])
        hidden = layer.output(layer.intermediate(attended), attended)[0]
    expected = model.classifier(torch.tanh(model.bert.pooler.dense(hidden[:1])))
    torch.testing.assert_close(model(ids), expected, **TOLERANCE)
    other = random_bert(tiny_config(num_attention_heads=4))
    assert not torch.allclose(model(ids), other(ids), atol=1e-2), "the number of heads made no difference"


@torch.no_grad()
def test_one_number_of_heads_is_the_same_number_for_each_layer() -> None:
    ids, mask = padded_batch(tiny_config(), [9, 4])
    one, each = (random_bert(tiny_config(num_attention_heads=heads))(ids, mask) for heads in (4, (4, 4)))
    assert torch.equal(one, each)


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        ((4,), "has 1 numbers for 2 layers"),
        ((4, 4, 4), "has 3 numbers for 2 layers"),
        ((4, 5), "divisible"),
        ((4, 0), "divisible"),
    ],
)
def test_heads_that_do_not_fit_are_refused(heads: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_config(num_attention_heads=heads)


def test_heads_for_each_layer_come_out_of_a_config_file_as_they_went_in() -> None:
    config = tiny_config(num_attention_heads=(2, 8))
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    assert values["num_attention_heads"] == [2, 8]
    assert BertConfig.from_dict(values) == config


@pytest.mark.parametrize("features", [None, torch.zeros(2, 1), torch.zeros(2, 3)])
def test_another_number_of_features_than_the_model_reads_is_refused(features: Tensor | None) -> None:
    ids, mask = padded_batch(tiny_config(), [9, 4])
    given = 0 if features is None else features.shape[1]
    with pytest.raises(ValueError, match=f"{given} numeric features for each text; this model reads 2"):
        random_bert(tiny_config(num_features=2))(ids, mask, features=features)
    if features is not None:
        with pytest.raises(ValueError, match="this model reads 0"):
            random_bert(tiny_config())(ids, mask, features=features)
