"""`training.bert` against transformers on the same weights, then its shapes, limits and parameter counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from tests.tiny import padded_batch, random_bert, tiny_config, transformers_twin
from training.attention import additive_mask
from training.batches import collate, encode
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.lora import count_parameters
from training.pretrained import find_base, load_model, load_tokenizer

CONFIGS = [
    tiny_config(),
    tiny_config(hidden_size=24, num_attention_heads=1, num_hidden_layers=1, pad_token_id=5, num_labels=5),
    tiny_config(
        hidden_size=48,
        num_attention_heads=6,
        num_hidden_layers=3,
        intermediate_size=20,
        pad_token_id=7,
        type_vocab_size=3,
        layer_norm_eps=1e-3,
        max_position_embeddings=17,
        num_labels=2,
    ),
]
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 2, 7, None], ids=["1", "2", "7", "maximum"])
@torch.no_grad()
def test_logits_equal_transformers_on_padded_batches(config: BertConfig, tokens: int | None) -> None:
    model, tokens = random_bert(config), tokens or config.max_position_embeddings
    ids, mask = padded_batch(config, [tokens, max(1, tokens // 2), 1, max(1, tokens - 1)])
    expected = transformers_twin(model)(input_ids=ids, attention_mask=mask).logits
    assert expected.std() > 0.1, "logits so small that the tolerance would hide an error"
    torch.testing.assert_close(model(ids, mask), expected, **TOLERANCE)


@torch.no_grad()
def test_logits_equal_transformers_with_token_types_and_without_a_mask() -> None:
    config = CONFIGS[2]
    model = random_bert(config)
    ids, _ = padded_batch(config, [9, 9, 9])
    types = torch.randint(0, 3, ids.shape, generator=torch.Generator().manual_seed(1))
    expected = transformers_twin(model)(input_ids=ids, token_type_ids=types).logits
    torch.testing.assert_close(model(ids, None, types), expected, **TOLERANCE)
    assert not torch.allclose(model(ids), expected, atol=1e-2), "the token types made no difference"


def test_gradients_equal_transformers() -> None:
    model = random_bert(tiny_config())
    twin = transformers_twin(model)
    ids, mask = padded_batch(model.config, [9, 4, 7])
    labels = torch.tensor([0, 2, 1])
    F.cross_entropy(model(ids, mask), labels).backward()  # type: ignore[no-untyped-call]
    F.cross_entropy(twin(input_ids=ids, attention_mask=mask).logits, labels).backward()  # type: ignore[no-untyped-call]
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    torch.testing.assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, expected, **TOLERANCE)


@torch.no_grad()
def test_logits_equal_transformers_on_the_embedded_base() -> None:
    folder = find_base("minilm")
    model, _ = load_model(folder, num_labels=4, new_head=True)
    twin = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=4).eval()
    twin.classifier.load_state_dict(model.classifier.state_dict())
    texts = ["A short one.", "", "Façade, naïve; 東京 and emoji 🙂!", "many words " * 400]
    encoded = encode(load_tokenizer(folder, max_length=512), texts, [])
    assert encoded.lengths[3] == 512
    for rows in ([0, 1, 2], [0, 3]):
        batch = collate(encoded, rows, pad_token_id=model.config.pad_token_id)
        expected = twin(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        torch.testing.assert_close(model.eval()(batch.input_ids, batch.attention_mask), expected, **TOLERANCE)


@pytest.mark.parametrize("config", CONFIGS)
def test_parameter_names_and_shapes_are_those_of_transformers(config: BertConfig) -> None:
    model = BertForSequenceClassification(config)
    twin = transformers.BertForSequenceClassification(transformers.BertConfig(**dataclasses.asdict(config)))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    theirs.pop("bert.embeddings.position_ids", None)  # a buffer, which old versions saved
    assert ours == theirs


@torch.no_grad()
def test_what_stands_in_padded_places_changes_nothing() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [8, 3])
    other = torch.where(mask == 0, 77, ids)
    assert not torch.equal(ids, other)
    torch.testing.assert_close(model(other, mask), model(ids, mask), atol=1e-6, rtol=0.0)


@torch.no_grad()
def test_padding_changes_a_row_by_rounding_only() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [8, 3])
    torch.testing.assert_close(model(ids, mask)[1:], model(ids[1:, :3]), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_fully_padded_row_gives_finite_logits_and_leaves_the_others_alone(dtype: torch.dtype) -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [8, 5])
    alone = mask.clone()
    alone[0] = 0
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits, expected = model(ids, alone), model(ids, mask)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[1], expected[1], **TOLERANCE)


@torch.no_grad()
def test_bf16_autocast_with_padding_stays_near_fp32() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [8, 3, 5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids, mask)
    torch.testing.assert_close(logits.float(), model(ids, mask), atol=0.15, rtol=0.0)  # of logits of about 1


@torch.no_grad()
def test_int32_ids_and_masks_give_the_logits_of_int64() -> None:
    model = random_bert(tiny_config())
    ids, mask = padded_batch(model.config, [8, 3])
    assert torch.equal(model(ids.int(), mask.int()), model(ids, mask))


@pytest.mark.parametrize("tokens", [0, 41])
def test_a_batch_that_the_model_cannot_read_is_refused(tokens: int) -> None:
    model = random_bert(tiny_config())
    with pytest.raises(ValueError, match=rf"{tokens} tokens; this model reads 1 to 40"):
        model(torch.zeros(2, tokens, dtype=torch.int64))


def test_every_dropout_acts_in_training_and_none_in_evaluation() -> None:
    model = random_bert(tiny_config(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    ids, mask = padded_batch(model.config, [8, 3])
    assert torch.equal(model(ids, mask), model(ids, mask))
    model = random_bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    assert torch.equal(model(ids, mask), model(ids, mask))
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert len(dropouts) == 1 + 2 * model.config.num_hidden_layers + 1
    for name, module in dropouts.items():
        module.p = 0.5
        assert not torch.allclose(model(ids, mask), model(ids, mask), atol=1e-3), name
        module.p = 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_finite_in_the_type_that_attention_computes_in(dtype: torch.dtype) -> None:
    """The lowest fp32 number is minus infinity in bf16, and a published re-implementation masked with -inf: NaN."""
    mask = additive_mask(torch.tensor([[1, 1, 0], [0, 0, 0]]), dtype)
    lowest = torch.finfo(dtype).min
    assert mask is not None
    torch.testing.assert_close(
        mask, torch.tensor([[[[0, 0, lowest]]], [[[lowest, lowest, lowest]]]], dtype=dtype), atol=0.0, rtol=0.0
    )
    assert additive_mask(None, dtype) is None


def test_attention_dropout_acts_on_its_own() -> None:
    model = random_bert(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)).train()
    ids, mask = padded_batch(model.config, [8, 3])
    assert not torch.allclose(model(ids, mask), model(ids, mask), atol=1e-3)


def test_new_weights_are_drawn_as_bert_draws_them() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=2000, num_hidden_layers=1, hidden_size=192))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.numel() > 10_000:
            assert 0.019 < parameter.std().item() < 0.021, name
        elif name.endswith("LayerNorm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif parameter.ndim == 1:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
    assert torch.equal(model.bert.embeddings.word_embeddings.weight[0], torch.zeros(192)), "the row of [PAD]"


def test_the_default_padding_token_is_0_as_in_every_bert_vocabulary() -> None:
    """A published re-implementation had 103, which is [MASK]."""
    assert BertConfig().pad_token_id == transformers.BertConfig().pad_token_id == 0


def test_default_sizes_are_those_of_transformers() -> None:
    theirs = transformers.BertConfig()
    ours = dataclasses.asdict(BertConfig())
    assert (ours.pop("num_features"), ours.pop("log_features")) == (0, False)
    assert ours == {name: getattr(theirs, name) for name in ours}


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (BertConfig(), 109_483_778),  # bert-base-uncased
        (BertConfig(vocab_size=28_996), 108_311_810),  # bert-base-cased
        # prajjwal1/bert-tiny with 9 labels
        (
            BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, num_labels=9),
            4_387_081,
        ),
        (
            BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, num_labels=9),
            10_122_249,
        ),
    ],
)
def test_known_models_have_their_known_number_of_parameters(config: BertConfig, total: int) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    assert count_parameters(model) == (total, total)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"hidden_size": 30, "num_attention_heads": 4}, r"hidden_size \(30\) must be divisible"),
        ({"pad_token_id": -1}, r"pad_token_id \(-1\) must be within the vocabulary"),
        ({"vocab_size": 10, "pad_token_id": 10}, r"pad_token_id \(10\) must be within the vocabulary of 10"),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BertConfig.from_dict(values)


def test_a_config_is_read_with_its_overrides_and_without_keys_of_no_use() -> None:
    values = {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "pad_token_id": None,
        "transformers_version": "5",
        "is_decoder": False,
    }
    config = BertConfig.from_dict(values, num_labels=7, hidden_dropout_prob=0.0)
    assert config == BertConfig(hidden_size=64, num_attention_heads=2, num_labels=7, hidden_dropout_prob=0.0)
