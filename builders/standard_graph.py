"""Our BERT as an ONNX graph of standard operators alone, typed for TensorRT; the padded layout, and what both layouts share.

Not `builders.onnx_export`: its operators are ONNX Runtime's own, which TensorRT does not know. What is the same: the type-0
row is added to the position embeddings once, here, and the last layer is computed for the first token alone, the only one that
the pooler reads.

Inputs and outputs are INT32 and FP32 in every precision. INT64 stands only where ONNX wants it: in shapes, axes, and ArgMax.
Padding gets a finite score that fits FP16 by choice instead of by sum, so that a row whose every token is padding is the plain
mean that our BERT makes of it, and never NaN.

Operators: https://onnx.ai/onnx/operators/ at opset 20; what TensorRT takes of them:
https://github.com/onnx/onnx-tensorrt/blob/release/10.13-GA/docs/operators.md

Shapes: B batch, T tokens, Q query tokens (T, in the last layer 1), D hidden, H heads, K head size,
F numeric features beside the text, C classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnx import TensorProto, helper

from builders.graph_writer import GraphWriter, Typing
from contract.tensors import ATTENTION_MASK, FEATURES, INPUT_IDS, LOGITS
from training.bert import BertForSequenceClassification

FP32 = TensorProto.FLOAT
MASKED = np.float32(np.finfo(np.float16).min)  # -65504: below every real score, so its softmax is exactly 0
PROBABILITIES = "probabilities"  # FP32 [B, C], softmax of the logits
LABEL_INDEX = "label_index"  # INT32 [B, 1], the largest logit
EXTRA_OUTPUTS = (PROBABILITIES, LABEL_INDEX)
EMBEDDINGS, FIRST_TOKEN = "embeddings", "first_token"

FirstToken = Callable[[str], tuple[str, str]]
"""The hidden states of all tokens -> (those of each text's first token, their mask)."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the hidden states lie in memory: [B, T, D] or, packed, [T, D]. Zeros in shapes are dimensions kept."""

    leading: tuple[int, ...]
    """The dimensions before D, as zeros."""
    by_head: tuple[int, ...]
    """The permutation from [..., T, H, K] to [..., H, T, K], and back."""
    keys: tuple[int, ...]
    """The permutation from [..., T, H, K] to [..., H, K, T]."""


PADDED = Layout((0, 0), (0, 2, 1, 3), (0, 2, 3, 1))
PACKED = Layout((0,), (1, 0, 2), (1, 2, 0))


def standard_onnx(
    model: BertForSequenceClassification, typing: Typing | None = None, *, outputs: Collection[str] = ()
) -> onnx.ModelProto:
    """The padded graph: `input_ids` and `attention_mask` INT32 [B, T] -> `logits` FP32 [B, C]; B and T are free.

    A model with numeric features also reads `features` FP32 [B, F], raw.

    Args:
        model: our BERT.
        typing: FP32 when left out.
        outputs: of `EXTRA_OUTPUTS`, those wanted beside the logits.
    """
    inputs, features = (INPUT_IDS, ATTENTION_MASK), model.config.num_features
    graph = GraphWriter(model, typing or Typing(), dict.fromkeys(inputs, TensorProto.INT32) | {FEATURES: FP32})
    hidden = _embeddings(graph)
    real = graph.cast(ATTENTION_MASK, TensorProto.BOOL)
    mask = graph.add("Unsqueeze", [real, graph.integers("mask.axes", [1, 2])], "mask")  # [B, 1, 1, T]

    def first_token(hidden: str) -> tuple[str, str]:
        index = graph.constant("first_token.index", np.array([0]), TensorProto.INT32)
        return graph.add("Gather", [hidden, index], FIRST_TOKEN, axis=1), mask  # [B, 1, D]

    hidden = encoder(graph, PADDED, hidden, mask, first_token)
    first = graph.add("Squeeze", [hidden, graph.integers("pooled_token.axes", [1])], "pooled_token")  # [B, D]
    given = [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in inputs]
    given += [helper.make_tensor_value_info(FEATURES, FP32, ["batch", features])] if features else []
    return graph.finish(given, head(graph, first, outputs), "bert_padded")


def embedding_tables(graph: GraphWriter) -> tuple[str, str]:
    """(word, position + type 0), in the compute type."""
    prefix, compute = "bert.embeddings", graph.typing.compute
    types = graph.weights[f"{prefix}.token_type_embeddings.weight"][0]
    positions = graph.weights[f"{prefix}.position_embeddings.weight"] + types
    words = graph.parameter(f"{prefix}.word_embeddings.weight", compute)
    return words, graph.constant(f"{prefix}.position_embeddings.weight+type_0", positions, compute)


def _embeddings(graph: GraphWriter) -> str:
    """[B, T] -> [B, T, D]."""
    words, table = embedding_tables(graph)
    word = graph.add("Gather", [words, INPUT_IDS], "words", type=graph.types[words])
    tokens = graph.add("Shape", [INPUT_IDS], "tokens", type=TensorProto.INT64, start=1, end=2)  # [1]: T
    inputs = [table, graph.integers("positions.start", [0]), tokens, graph.integers("positions.axes", [0])]
    return embedded(graph, word, graph.add("Slice", inputs, "positions"))


def embedded(graph: GraphWriter, words: str, positions: str) -> str:
    """LayerNorm(words + positions), summed in FP32."""
    total = graph.add("Add", [graph.cast(words, FP32), graph.cast(positions, FP32)], f"{EMBEDDINGS}.sum")
    return _norm(graph, "bert.embeddings", total, EMBEDDINGS)


def encoder(graph: GraphWriter, layout: Layout, hidden: str, mask: str, first_token: FirstToken) -> str:
    """All layers; `first_token` gives the last one's queries, one a text, and their mask."""
    last = graph.config.num_hidden_layers - 1
    for number in range(last + 1):
        queries, seen = first_token(hidden) if number == last else (hidden, mask)
        prefix = f"bert.encoder.layer.{number}"
        context = _attention(graph, layout, number, queries=queries, hidden=hidden, mask=seen)
        attended = _residual(graph, f"{prefix}.attention.output", context, queries)
        dense = graph.linear(f"{prefix}.intermediate.dense", attended)
        wide = graph.add("Gelu", [dense], f"{prefix}.intermediate")
        hidden = _residual(graph, f"{prefix}.output", wide, attended)
    return hidden


def _attention(graph: GraphWriter, layout: Layout, number: int, *, queries: str, hidden: str, mask: str) -> str:
    """[.., Q, D] and [.., T, D] -> [.., Q, D]; the mask, true where there is a token to see, broadcasts to [.., H, Q, T]."""
    prefix, compute = f"bert.encoder.layer.{number}.attention.self", graph.typing.compute
    heads = graph.config.layer_heads[number]
    size = graph.config.hidden_size // heads

    def by_head(name: str, source: str, permutation: tuple[int, ...]) -> str:
        x = graph.linear(f"{prefix}.{name}", source)
        if name == "query":  # scaled before the product, which then cannot overflow sooner than it must
            scale = graph.constant(f"{prefix}.scale", np.float32(1 / math.sqrt(size)), compute)
            x = graph.add("Mul", [x, scale], f"{prefix}.query.scaled")
        shape = graph.integers(f"{prefix}.{name}.shape", [*layout.leading, heads, size])
        split = graph.add("Reshape", [x, shape], f"{prefix}.{name}.split")
        return graph.add("Transpose", [split], f"{prefix}.{name}.heads", perm=permutation)

    query = by_head("query", queries, layout.by_head)
    key, value = by_head("key", hidden, layout.keys), by_head("value", hidden, layout.by_head)
    scores = graph.cast(graph.add("MatMul", [query, key], f"{prefix}.scores"), FP32)
    inputs = [mask, scores, graph.constant(f"{prefix}.masked", MASKED, FP32)]
    weights = graph.add("Softmax", [graph.add("Where", inputs, f"{prefix}.seen", type=FP32)], f"{prefix}.weights", axis=-1)
    context = graph.add("MatMul", [graph.cast(weights, compute), value], f"{prefix}.context")
    merged = graph.add("Transpose", [context], f"{prefix}.merged", perm=layout.by_head)
    shape = graph.integers(f"{prefix}.shape", [*layout.leading, graph.config.hidden_size])
    return graph.add("Reshape", [merged, shape], prefix)


def _residual(graph: GraphWriter, prefix: str, x: str, residual: str) -> str:
    """LayerNorm(x W^T + b + residual), summed in FP32."""
    dense = graph.linear(f"{prefix}.dense", x)
    total = graph.add("Add", [graph.cast(dense, FP32), graph.cast(residual, FP32)], f"{prefix}.sum")
    return _norm(graph, prefix, total, prefix)


def _norm(graph: GraphWriter, prefix: str, x: str, output: str) -> str:
    """LayerNorm in FP32; what is kept of it is in the compute type, half the memory to read and write in FP16."""
    inputs = [x, *(graph.parameter(f"{prefix}.LayerNorm.{name}") for name in ("weight", "bias"))]
    norm = graph.add("LayerNormalization", inputs, f"{output}.norm", axis=-1, epsilon=graph.config.layer_norm_eps)
    return graph.cast(norm, graph.typing.compute)


def _scores(graph: GraphWriter) -> str:
    """Raw [B, F] -> by how many deviations each number, or its signed logarithm, is off its mean."""
    scaled = FEATURES
    if graph.config.log_features:
        one = graph.constant("features.one", 1.0, FP32)
        size = graph.add("Add", [graph.add("Abs", [FEATURES], "features.size"), one], "features.size_and_one")
        signed = [graph.add("Sign", [FEATURES], "features.sign"), graph.add("Log", [size], "features.log")]
        scaled = graph.add("Mul", signed, "features.scaled")
    centred = graph.add("Sub", [scaled, graph.parameter("tabular.mean")], "features.centred")
    return graph.add("Div", [centred, graph.parameter("tabular.std")], "features.scores")


def head(graph: GraphWriter, first: str, outputs: Collection[str]) -> list[onnx.ValueInfoProto]:
    """Pooler and classifier over [B, D], in FP32: a thousandth of the work, and what the answer is made of."""
    pooled = graph.add("Tanh", [_gemm(graph, "bert.pooler.dense", graph.cast(first, FP32), "pooler")], "pooled")
    if graph.config.num_features:
        _gemm(graph, "tabular.classifier", graph.add("Concat", [pooled, _scores(graph)], "joint", axis=1), LOGITS)
    else:
        _gemm(graph, "classifier", pooled, LOGITS)
    made = [helper.make_tensor_value_info(LOGITS, FP32, ["batch", graph.config.num_labels])]
    if PROBABILITIES in outputs:
        graph.add("Softmax", [LOGITS], PROBABILITIES, axis=-1)
        made.append(helper.make_tensor_value_info(PROBABILITIES, FP32, ["batch", graph.config.num_labels]))
    if LABEL_INDEX in outputs:
        best = graph.add("ArgMax", [LOGITS], "best", type=TensorProto.INT64, axis=1, keepdims=1)
        graph.add("Cast", [best], LABEL_INDEX, type=TensorProto.INT32, to=TensorProto.INT32)
        made.append(helper.make_tensor_value_info(LABEL_INDEX, TensorProto.INT32, ["batch", 1]))
    return made


def _gemm(graph: GraphWriter, path: str, x: str, output: str) -> str:
    """x W^T + b on [B, in]."""
    return graph.add("Gemm", [x, graph.parameter(f"{path}.weight"), graph.parameter(f"{path}.bias")], output, transB=1)
