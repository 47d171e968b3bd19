"""The CPU engine's ONNX graph, written operator by operator from the weights of our BERT.

Not traced: PyTorch's exporter yields some 120 nodes of which ONNX Runtime fuses no attention, and its names of weights
are positional. Here every node is one of ONNX Runtime's fused operators for BERT, every initializer bears its parameter's
name, and two exports of one architecture differ in nothing but the values. That it computes the same is proved by
`builders.parity`, not assumed.

Two things are computed once, here, instead of in every request: the type-0 token-type row is added to the position
embeddings (a single text has no other type), and the last layer is computed for the first token alone, the only one that
the pooler reads.

Operators: https://github.com/microsoft/onnxruntime/blob/v1.31.1/docs/ContribOperators.md

Shapes: B batch, T tokens, D hidden, F numeric features beside the text, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract.tensors import ATTENTION_MASK, FEATURES, INPUT_IDS, LOGITS
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig

OPSET = 17
IR_VERSION = 10
FUSED = "com.microsoft"
MASKED = float(np.finfo(np.float32).min)  # what our BERT adds to the scores of padding: finite, so never NaN

Array = npt.NDArray[Any]

_Attention = Callable[["_Graph", str, str, BertConfig], tuple[str, str]]
"""(graph, prefix of the layer, hidden, config) -> (context, what the residual adds to it)."""


class _Graph:
    """Nodes and initializers in the making; each call adds one node and returns the name of its first output."""

    def __init__(self, weights: dict[str, Array]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def transposed(self, name: str) -> str:
        """A linear layer's [out, in] weight as the [in, out] that MatMul wants."""
        return self.constant(name + ".T", self.weights[name].T)

    def add(
        self, operator: str, inputs: list[str], output: str, *, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        names = [output] + [""] * (outputs - 1)
        self.nodes.append(helper.make_node(operator, inputs, names, name=output, domain=domain, **attributes))
        return output


def build_onnx(model: BertForSequenceClassification, *, joint_attention: bool = True) -> onnx.ModelProto:
    """The fp32 graph of `model`: `input_ids` and `attention_mask` INT32 [B, T] -> `logits` FP32 [B, C]; B and T are free.

    A model with numeric features also reads `features` FP32 [B, F], raw.

    With `joint_attention` Q, K, V and the attention over them are one operator, which no quantizer looks into; without it
    their products are MatMul nodes like all the others.
    """
    config = model.config
    graph = _Graph({name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()})
    hidden = _embeddings(graph, config)
    for number in range(config.num_hidden_layers):
        last = number == config.num_hidden_layers - 1
        attention = _first_token_attention if last else _joint_attention if joint_attention else _attention
        hidden = _layer(graph, f"bert.encoder.layer.{number}", hidden, config, attention)
    first = graph.add("Squeeze", [hidden, graph.constant("axis_1", np.array([1]))], "first_token")  # [B, 1, D] -> [B, D]
    pooled = graph.add("Tanh", [_gemm(graph, "bert.pooler.dense", first, "pooler")], "pooled")
    if config.num_features:
        joint = graph.add("Concat", [pooled, _scores(graph, config)], "joint", axis=1)  # [B, D + F]
        _gemm(graph, "tabular.classifier", joint, LOGITS)
    else:
        _gemm(graph, "classifier", pooled, LOGITS)
    return _model(graph, config)


def _scores(graph: _Graph, config: BertConfig) -> str:
    """Raw [B, F] -> by how many deviations each number, or its signed logarithm, is off its mean."""
    scaled = FEATURES
    if config.log_features:
        graph.constant("one", np.array(1, np.float32))
        added = graph.add("Add", [graph.add("Abs", [FEATURES], "features.size"), "one"], "features.size_and_one")
        signed = [graph.add("Sign", [FEATURES], "features.sign"), graph.add("Log", [added], "features.log")]
        scaled = graph.add("Mul", signed, "features.scaled")
    centred = graph.add("Sub", [scaled, graph.weight("tabular.mean")], "features.centred")
    return graph.add("Div", [centred, graph.weight("tabular.std")], "features.scores")


def _embeddings(graph: _Graph, config: BertConfig) -> str:
    """[B, T] -> [B, T, D]: word + (position + type 0), then LayerNorm."""
    prefix = "bert.embeddings"
    types = graph.weights[f"{prefix}.token_type_embeddings.weight"][0]
    positions = graph.weights[f"{prefix}.position_embeddings.weight"] + types
    inputs = [
        INPUT_IDS,
        "",
        graph.weight(f"{prefix}.word_embeddings.weight"),
        graph.constant(f"{prefix}.position_embeddings.weight+type_0", positions),
        "",
        graph.weight(f"{prefix}.LayerNorm.weight"),
        graph.weight(f"{prefix}.LayerNorm.bias"),
    ]
    epsilon = config.layer_norm_eps
    return graph.add("EmbedLayerNormalization", inputs, "embeddings", domain=FUSED, outputs=2, epsilon=epsilon)


def _layer(graph: _Graph, prefix: str, hidden: str, config: BertConfig, attention: _Attention) -> str:
    """One encoder layer, [B, T, D] -> [B, T, D], or -> [B, 1, D] where `attention` is that of the first token only."""
    context, residual = attention(graph, prefix, hidden, config)
    attended = _residual(graph, f"{prefix}.attention.output", context, residual, config)
    dense = f"{prefix}.intermediate.dense"
    wide = graph.add("MatMul", [attended, graph.transposed(f"{dense}.weight")], f"{dense}.matmul")
    wide = graph.add("BiasGelu", [wide, graph.weight(f"{dense}.bias")], f"{dense}.gelu", domain=FUSED)
    return _residual(graph, f"{prefix}.output", wide, attended, config)


def _joint_attention(graph: _Graph, prefix: str, hidden: str, config: BertConfig) -> tuple[str, str]:
    """Q, K and V as one matrix product, and the attention over them, in one operator."""
    parts = [f"{prefix}.attention.self.{name}" for name in ("query", "key", "value")]
    weight = np.concatenate([graph.weights[f"{part}.weight"].T for part in parts], axis=1)  # [D, 3D]
    bias = np.concatenate([graph.weights[f"{part}.bias"] for part in parts])  # [3D]
    name = f"{prefix}.attention.self.qkv"
    inputs = [hidden, graph.constant(f"{name}.weight.T", weight), graph.constant(f"{name}.bias", bias), ATTENTION_MASK]
    return graph.add("Attention", inputs, f"{prefix}.attention.self", **_heads(config, prefix)), hidden


def _attention(graph: _Graph, prefix: str, hidden: str, config: BertConfig) -> tuple[str, str]:
    """The attention of all tokens to all: (context [B, T, D], `hidden` again for the residual)."""
    return _projected_attention(graph, prefix, hidden, hidden, config), hidden


def _first_token_attention(graph: _Graph, prefix: str, hidden: str, config: BertConfig) -> tuple[str, str]:
    """The attention of the first token to all: (context [B, 1, D], the first token's own hidden state [B, 1, D])."""
    first = graph.add("Gather", [hidden, graph.constant("index_0", np.array([0]))], f"{prefix}.first_token", axis=1)
    return _projected_attention(graph, prefix, first, hidden, config), first


def _projected_attention(graph: _Graph, prefix: str, queries: str, hidden: str, config: BertConfig) -> str:
    """Q, K and V by a MatMul each, then the attention: queries [B, Q, D] and [B, T, D] -> [B, Q, D]."""
    projected = []
    for name, source in (("query", queries), ("key", hidden), ("value", hidden)):
        path = f"{prefix}.attention.self.{name}"
        product = graph.add("MatMul", [source, graph.transposed(f"{path}.weight")], f"{path}.matmul")
        projected.append(graph.add("Add", [product, graph.weight(f"{path}.bias")], path))
    inputs = [*projected, "", ATTENTION_MASK]
    return graph.add("MultiHeadAttention", inputs, f"{prefix}.attention.self", **_heads(config, prefix))


def _heads(config: BertConfig, prefix: str) -> dict[str, Any]:
    number = int(prefix.rsplit(".", 1)[1])
    return {"domain": FUSED, "num_heads": config.layer_heads[number], "mask_filter_value": MASKED}


def _residual(graph: _Graph, prefix: str, x: str, residual: str, config: BertConfig) -> str:
    """LayerNorm(x W + b + residual)."""
    product = graph.add("MatMul", [x, graph.transposed(f"{prefix}.dense.weight")], f"{prefix}.dense.matmul")
    norm = [graph.weight(f"{prefix}.LayerNorm.{name}") for name in ("weight", "bias")]
    inputs = [product, residual, *norm, graph.weight(f"{prefix}.dense.bias")]
    return graph.add("SkipLayerNormalization", inputs, prefix, domain=FUSED, epsilon=config.layer_norm_eps)


def _gemm(graph: _Graph, path: str, x: str, output: str) -> str:
    """x W^T + b on [B, in]."""
    return graph.add("Gemm", [x, graph.weight(f"{path}.weight"), graph.weight(f"{path}.bias")], output, transB=1)


def _model(graph: _Graph, config: BertConfig) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in (INPUT_IDS, ATTENTION_MASK)
    ]
    if config.num_features:
        inputs.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", config.num_features]))
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", config.num_labels])]
    body = helper.make_graph(
        graph.nodes, "bert_for_sequence_classification", inputs, outputs, list(graph.initializers.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="builders.onnx_export")
    onnx.checker.check_model(model)
    return model
