"""Tiny random models, batches and texts that the tests share. The weights are large, so that a wrong sum shows.

With BERT's own initial weights (std 0.02) a tiny model attends almost evenly and a wrong mask hides below 1e-5.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.batches import Encoded
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.lora import inject_lora, lora_modules

ALL_LINEARS = ("query", "key", "value", "dense")
ANIMALS = ("cat", "dog", "bird", "fish", "horse")
PLANTS = ("tree", "moss", "fern", "rose", "grass")
FILLERS = ("the", "a", "very", "old", "big", "green", "house", "near", "under", "slow", "we", "saw")


def tiny_config(**changes: Any) -> BertConfig:
    """A BERT of two narrow layers; no two sizes are equal, so that swapped ones do not fit."""
    sizes: dict[str, Any] = {
        "vocab_size": 90,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 56,
        "max_position_embeddings": 40,
        "num_labels": 3,
    }
    return BertConfig(**(sizes | changes))


def random_bert(config: BertConfig, *, seed: int = 0, std: float = 0.3) -> BertForSequenceClassification:
    """A model in eval mode whose every parameter, biases and LayerNorm too, is far from its initial value."""
    model = BertForSequenceClassification(config)
    randomise(model, seed=seed, std=std)
    return model.eval()


@torch.no_grad()
def randomise(module: nn.Module, *, seed: int, std: float) -> None:
    """Draw all parameters: normal, LayerNorm weights around 1, all else around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))


def adapted_bert(config: BertConfig | None = None, *, seed: int = 0, **options: Any) -> BertForSequenceClassification:
    """`random_bert` with adapters on all linear layers, A and B both far from zero."""
    model = random_bert(config or tiny_config(), seed=seed)
    defaults: dict[str, Any] = {"targets": ALL_LINEARS, "rank": 4, "alpha": 6.0}
    inject_lora(model, **(defaults | options))
    for number, (_, module) in enumerate(lora_modules(model)):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        module.lora_A.data = 0.2 * torch.randn(module.lora_A.shape, generator=generator)
        module.lora_B.data = 0.2 * torch.randn(module.lora_B.shape, generator=generator)
    return model.eval()


def transformers_twin(model: BertForSequenceClassification) -> Any:
    """transformers' model of the same configuration with the same weights, its attention written out ("eager")."""
    import transformers

    values = dataclasses.asdict(model.config)
    twin = transformers.BertForSequenceClassification(transformers.BertConfig(**values, attn_implementation="eager"))
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


def padded_batch(config: BertConfig, lengths: Sequence[int], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random (input_ids, attention_mask), int64 [B, T], padded on the right to the longest of `lengths`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(8, config.vocab_size, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def random_encoded(rows: int, config: BertConfig, *, seed: int = 0, longest: int = 12) -> Encoded:
    """Rows of random length whose class is told by their first token."""
    generator = random.Random(seed)
    ids = [[generator.randrange(8, config.vocab_size) for _ in range(generator.randint(2, longest))] for _ in range(rows)]
    return Encoded(ids, [row[0] % config.num_labels for row in ids], [False] * rows)


def tiny_texts(rows: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Distinct (text, label): half of the words of a text are animals or plants, half say nothing."""
    generator = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < rows:
        label, words = (("animal", ANIMALS), ("plant", PLANTS))[len(found) % 2]
        pairs = [(generator.choice(FILLERS), generator.choice(words)) for _ in range(generator.randint(2, 10))]
        found.setdefault(" ".join(word for pair in pairs for word in pair), label)
    return list(found.items())


def tiny_vocabulary() -> list[str]:
    """Special tokens, punctuation, letters as words and as continuations, and the words of `tiny_texts`."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    whole = [word for word in (*ANIMALS, *PLANTS, *FILLERS) if len(word) > 1]
    return [*special, *".,!?", *letters, *(f"##{letter}" for letter in letters), *whole]
