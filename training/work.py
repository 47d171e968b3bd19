"""How much arithmetic one training step is, from the shapes alone: forward, activation gradients, weight gradients.

A multiplication and its addition are two operations. A matrix product [N, I] x [I, O] is 2 N I O of them forward; its
backward is the same once for the gradient of its input (needed wherever something below it trains) and once for that of its
weight (needed only where the weight trains). So full fine-tuning is three forwards, and LoRA, which skips most weight
gradients, nearly two: the limit of its speed-up is about 3 / 2, unless frozen layers at the input let backward stop early.

Shapes: B batch, T tokens, Q query tokens (T, in the last layer 1), D hidden, I in, O out features, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from training.bert import BertForSequenceClassification, BertLayer
from training.lora import LoraLinear, head_of
from training.masked import MaskedLinear


@dataclass
class Work:
    """Operations of one step."""

    forward: float = 0.0
    activation_gradient: float = 0.0
    weight_gradient: float = 0.0

    @property
    def total(self) -> float:
        """Of the whole step, the optimizer not counted."""
        return self.forward + self.activation_gradient + self.weight_gradient


def estimate_work(model: BertForSequenceClassification, *, rows: int, tokens: int, start: int = 0) -> Work:
    """The operations of one training step on `rows` texts of `tokens` tokens.

    Args:
        start: layers whose result is cached, and which are not computed.
    """
    work = Work()
    embeddings = model.bert.embeddings
    flows = start == 0 and any(parameter.requires_grad for parameter in embeddings.parameters())
    layers = model.bert.encoder.layer
    for number in range(start, len(layers)):
        layer = layers[number]
        assert isinstance(layer, BertLayer)  # noqa: S101 - for the type checker
        queries = tokens if number < len(layers) - 1 else 1
        flows = _layer(work, layer, flows, rows=rows, tokens=tokens, queries=queries)
    flows = _linear(work, model.bert.pooler.dense, rows, flows)
    head = head_of(model)
    _linear(work, head if isinstance(head, nn.Linear) else head.get_submodule("classifier"), rows, flows)
    return work


def _layer(work: Work, layer: BertLayer, flows: bool, *, rows: int, tokens: int, queries: int) -> bool:
    """Add one layer; whether its output needs a gradient. `flows`: whether its input does."""
    attention, size = layer.attention.self, rows * queries
    query = _linear(work, attention.query, size, flows)
    key = _linear(work, attention.key, rows * tokens, flows)
    value = _linear(work, attention.value, rows * tokens, flows)
    hidden = layer.output.LayerNorm.normalized_shape[0]
    product = 2.0 * rows * queries * tokens * hidden  # Q K^T, and as much P V
    work.forward += 2 * product
    work.activation_gradient += product * (value + (query or key) + query + key)
    flows = _linear(work, layer.attention.output.dense, size, query or key or value) or flows
    flows = flows or _trains(layer.attention.output.LayerNorm)
    inner = _linear(work, layer.intermediate.dense, size, flows)
    flows = _linear(work, layer.output.dense, size, inner) or flows
    return flows or _trains(layer.output.LayerNorm)


def _linear(work: Work, module: nn.Module, rows: int, flows: bool) -> bool:
    """Add one linear map of `rows` vectors; whether its output needs a gradient."""
    base = module.base if isinstance(module, LoraLinear | MaskedLinear) else module
    assert isinstance(base, nn.Linear)  # noqa: S101 - for the type checker
    product = 2.0 * rows * base.in_features * base.out_features
    work.forward += product
    work.activation_gradient += product * flows
    if isinstance(module, LoraLinear):
        down, up = 2.0 * rows * module.rank * base.in_features, 2.0 * rows * module.rank * base.out_features
        work.forward += down + up
        work.weight_gradient += down + up  # of A and of B
        work.activation_gradient += up + down * flows  # of the R-wide middle, and of the input
        return True
    if isinstance(module, MaskedLinear) or base.weight.requires_grad:
        work.weight_gradient += product  # the whole of it, of a masked matrix too
    return flows or _trains(module)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
