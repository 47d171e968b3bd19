"""BERT for sequence classification, from scratch, under Hugging Face's parameter names.

Devlin et al. 2018 (https://arxiv.org/abs/1810.04805): embeddings, N post-norm transformer layers, a tanh pooler over
the first token, a linear head. The names of the modules are the keys of Hugging Face checkpoints, so weights load by key.
Not here: reading weights (`training.pretrained`), what trains (`training.strategies`), the loss (`training.loop`).

The pooler reads the first token alone, so the last layer is computed for that token alone: the same logits, and of that layer
only K, V and one query remain, a seventh of the work of a six-layer model saved, forward and backward.

Shapes: B batch, T tokens, Q query tokens (T, in the last layer 1), D hidden, H heads, K head size (D / H), F feed-forward,
C classes, N numeric features beside the text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.attention import additive_mask, attend, compute_dtype
from training.bert_config import BertConfig


class BertEmbeddings(nn.Module):
    """Word + token-type + position embeddings, then LayerNorm."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """[B, T] ids -> [B, T, D]."""
        positions = self.position_embeddings.weight[: input_ids.shape[1]]  # [T, D]: the slice, so any T works
        types = self.token_type_embeddings.weight[0] if token_type_ids is None else self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + types + positions))  # type: ignore[no-any-return]


class BertSelfAttention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(K)) V."""

    def __init__(self, config: BertConfig, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [B, Q, D] that attend to [B, T, D] under an additive mask [B, 1, 1, T] -> [B, Q, D]."""

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # [B, T, D] -> [B, H, T, K]

        dropout = self.dropout_prob if self.training else 0.0
        context = attend(heads(self.query(queries)), heads(self.key(hidden)), heads(self.value(hidden)), mask, dropout=dropout)
        return context.transpose(1, 2).flatten(2)  # [B, Q, D]


class BertResidual(nn.Module):
    """LayerNorm(residual + dropout(dense(x))): how both halves of a layer end."""

    def __init__(self, in_features: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[B, Q, in] and [B, Q, D] -> [B, Q, D]."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # type: ignore[no-any-return]


class BertAttention(nn.Module):
    """Self-attention and its residual."""

    def __init__(self, config: BertConfig, num_heads: int) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, num_heads)
        self.output = BertResidual(config.hidden_size, config)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, Q, D] and [B, T, D] -> [B, Q, D]."""
        return self.output(self.self(queries, hidden, mask), queries)  # type: ignore[no-any-return]


class BertIntermediate(nn.Module):
    """The widening half of the feed-forward: exact (erf) GELU of a linear map."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, F]."""
        return F.gelu(self.dense(hidden))


class BertLayer(nn.Module):
    """Attention, then feed-forward, each with its residual."""

    def __init__(self, config: BertConfig, num_heads: int) -> None:
        super().__init__()
        self.attention = BertAttention(config, num_heads)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidual(config.intermediate_size, config)

    def forward(self, queries: Tensor, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, Q, D], the tokens to compute, and [B, T, D], all that they attend to -> [B, Q, D]."""
        attended = self.attention(queries, hidden, mask)
        return self.output(self.intermediate(attended), attended)  # type: ignore[no-any-return]


class BertEncoder(nn.Module):
    """The stack of layers; `layer.0` is the one next to the input."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, heads) for heads in config.layer_heads)

    def forward(self, hidden: Tensor, mask: Tensor | None, start: int = 0) -> Tensor:
        """[B, T, D], the input of layer `start` -> the first token's last hidden state, [B, 1, D]."""
        *inner, last = self.layer[start:]
        for layer in inner:
            hidden = layer(hidden, hidden, mask)
        # Contiguous, since torch multiplies strided batches by one of two ways that round differently.
        return last(hidden[:, :1].contiguous(), hidden, mask)  # type: ignore[no-any-return]


class BertPooler(nn.Module):
    """tanh of a linear map of the first token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, 1, D] -> [B, D]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class BertModel(nn.Module):
    """Embeddings, encoder, pooler."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """[B, T] -> pooled [B, D]."""
        return self.suffix(self.embed(input_ids, token_type_ids), attention_mask)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, D], the input of the first layer.

        Under autocast already in its type: on a CPU the residuals then stay in it, which halves what every sum and LayerNorm
        reads and writes (LayerNorm's own sums are fp32 inside torch). CUDA's autocast gives LayerNorm's result in fp32.
        """
        hidden: Tensor = self.embeddings(input_ids, token_type_ids)
        return hidden.to(compute_dtype(hidden))

    def prefix(self, input_ids: Tensor, attention_mask: Tensor | None, layers: int) -> Tensor:
        """[B, T] -> [B, T, D] behind the first `layers` layers: what a frozen beginning gives the rest."""
        hidden = self.embed(input_ids)
        mask = additive_mask(attention_mask, hidden.dtype)
        for layer in self.encoder.layer[:layers]:
            hidden = layer(hidden, hidden, mask)
        return hidden

    def suffix(self, hidden: Tensor, attention_mask: Tensor | None, start: int = 0) -> Tensor:
        """[B, T, D], the input of layer `start` -> pooled [B, D]."""
        mask = additive_mask(attention_mask, hidden.dtype)
        return self.pooler(self.encoder(hidden, mask, start))  # type: ignore[no-any-return]


class TabularHead(nn.Module):
    """A linear head over the pooled text and z-scored numbers; the training part's mean and deviation lie with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.num_features))
        self.register_buffer("std", torch.ones(config.num_features))
        self.log = config.log_features
        self.classifier = nn.Linear(config.hidden_size + config.num_features, config.num_labels)

    def scale(self, features: Tensor) -> Tensor:
        """Raw features -> those of which `mean` and `std` are: their signed logarithms where the config says so."""
        return features.sign() * features.abs().log1p() if self.log else features

    def forward(self, pooled: Tensor, features: Tensor) -> Tensor:
        """[B, D] and raw [B, N] -> [B, C]."""
        scores = (self.scale(features) - self.mean) / self.std
        return self.classifier(torch.cat([pooled, scores.to(pooled.dtype)], dim=1))  # type: ignore[no-any-return]


class BertForSequenceClassification(nn.Module):
    """BERT with a linear head over the pooled first token. New weights are drawn as in BERT: normal, std 0.02.

    With numeric features the head is `tabular`, and `classifier` stays unused: so did the published tabular model, and so
    transformers finds every key of its own in the weights file.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.tabular = TabularHead(config) if config.num_features else None
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        features: Tensor | None = None,
    ) -> Tensor:
        """Logits of a batch.

        Args:
            input_ids: int32 or int64 [B, T], 1 <= T <= `max_position_embeddings`.
            attention_mask: [B, T], non-zero where there is a token; None when nothing is padded.
            token_type_ids: [B, T]; None means type 0 everywhere, as in single-text classification.
            features: [B, N], raw, exactly when the model has numeric features.

        Returns:
            [B, C].

        Raises:
            ValueError: T is out of range, or features are missing or not asked for.
        """
        tokens = input_ids.shape[1]
        if not 1 <= tokens <= self.config.max_position_embeddings:
            raise ValueError(f"{tokens} tokens; this model reads 1 to {self.config.max_position_embeddings}")
        return self.classify(self.bert(input_ids, attention_mask, token_type_ids), features)

    def classify(self, pooled: Tensor, features: Tensor | None = None) -> Tensor:
        """Pooled [B, D] and, where the model has them, features [B, N] -> logits [B, C]."""
        given = 0 if features is None else features.shape[1]
        if given != self.config.num_features:
            raise ValueError(f"{given} numeric features for each text; this model reads {self.config.num_features}")
        pooled = self.dropout(pooled)
        return self.classifier(pooled) if self.tabular is None else self.tabular(pooled, features)  # type: ignore[no-any-return]
