"""The configuration of a BERT, under the names of Hugging Face's `config.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The part of Hugging Face's `config.json` that shapes the computation, under the same names."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int | tuple[int, ...] = 12
    """One number for all layers, or one for each."""
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    num_labels: int = 2
    num_features: int = 0
    """Numeric features that the head reads beside the text."""
    log_features: bool = False
    """The head reads sign(x) log(1 + |x|) of each feature x."""

    def __post_init__(self) -> None:
        if self.num_hidden_layers < 1:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; at least 1 is needed")
        if len(self.layer_heads) != self.num_hidden_layers:
            raise ValueError(f"num_attention_heads has {len(self.layer_heads)} numbers for {self.num_hidden_layers} layers")
        if any(heads < 1 or self.hidden_size % heads for heads in self.layer_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads ({self.num_attention_heads})"
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id ({self.pad_token_id}) must be within the vocabulary of {self.vocab_size}")

    @property
    def layer_heads(self) -> tuple[int, ...]:
        """Attention heads of each layer."""
        heads = self.num_attention_heads
        return (heads,) * self.num_hidden_layers if isinstance(heads, int) else tuple(heads)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> BertConfig:
        """From the content of a `config.json`. Raises ValueError for a model that this code would compute wrongly."""
        expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, wanted in expected.items():
            if values.get(key, wanted) != wanted:
                raise ValueError(f"{key} is {values[key]!r}; only {wanted!r} is supported")
        if values.get("is_decoder"):
            raise ValueError("is_decoder is true; only encoders are supported")
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in values.items() if key in names and value is not None}
        if isinstance(known.get("num_attention_heads"), list):
            known["num_attention_heads"] = tuple(known["num_attention_heads"])
        return cls(**(known | overrides))
