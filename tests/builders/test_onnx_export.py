"""`builders.onnx_export`: the graph computes what our BERT computes, and looks as its docstring says.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from builders.onnx_export import build_onnx
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LOGITS
from tests.tiny import random_bert, randomise, tiny_config
from training.bert import BertForSequenceClassification
from training.pretrained import EMBEDDED, find_base, load_model

Array = npt.NDArray[Any]

CONFIGS: dict[str, dict[str, Any]] = {
    "two layers": {},
    "one layer, which is the first and the last": {"num_hidden_layers": 1},
    "four layers": {"num_hidden_layers": 4},
    "one head": {"num_attention_heads": 1},
    "as many heads as half the width": {"num_attention_heads": 16},
    "a narrow feed-forward": {"intermediate_size": 8},
    "two classes": {"num_labels": 2},
    "many classes": {"num_labels": 31},
    "a large epsilon": {"layer_norm_eps": 0.5},
    "one token type": {"type_vocab_size": 1},
    "another padding id": {"pad_token_id": 4},
    "one position": {"max_position_embeddings": 1},
    "dropout that must be off": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
}


def session_of(model: BertForSequenceClassification) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(build_onnx(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, ids: Array, mask: Array) -> Array:
    logits: Array = session.run([LOGITS], {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
    return logits


@torch.inference_mode()
def reference(model: BertForSequenceClassification, ids: Array, mask: Array) -> Array:
    """Our BERT in double precision: what differs is the rounding of the graph alone, and not of this machine's torch too."""
    logits: Array = copy.deepcopy(model).double()(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    return logits


def batch_of(lengths: list[int], tokens: int, vocabulary: int) -> tuple[Array, Array]:
    """Random (input_ids, attention_mask) int32 [B, `tokens`], padded on the right; a length of 0 is a row of padding."""
    ids = np.random.default_rng([tokens, *lengths]).integers(0, vocabulary, (len(lengths), tokens), dtype=np.int32)
    return ids, (np.arange(tokens) < np.array(lengths)[:, None]).astype(np.int32)


def shapes_up_to(longest: int) -> list[tuple[list[int], int]]:
    """(tokens of each row, T), from a single token to `longest`."""
    wanted = [([1], 1), ([1, 0], 1), ([2], 2), ([9, 4, 0], 11), ([0], 3), ([13] * 3, 13), ([*range(24)], 23)]
    return [*((rows, tokens) for rows, tokens in wanted if tokens <= longest), ([longest, 0, 1], longest), ([longest], longest)]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_our_bert_on_every_shape(name: str) -> None:
    model = random_bert(tiny_config(**CONFIGS[name]), seed=len(name))
    session = session_of(model)
    for lengths, tokens in shapes_up_to(model.config.max_position_embeddings):
        ids, mask = batch_of(lengths, tokens, model.config.vocab_size)
        np.testing.assert_allclose(run(session, ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)


def test_a_gap_in_the_mask_is_a_gap_for_both() -> None:
    model = random_bert(tiny_config())
    ids, mask = batch_of([9, 9], 9, model.config.vocab_size)
    mask[0, 3], mask[1, 0] = 0, 0
    np.testing.assert_allclose(run(session_of(model), ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)


def test_what_stands_under_the_padding_changes_nothing() -> None:
    model = random_bert(tiny_config())
    session = session_of(model)
    ids, mask = batch_of([9, 4], 9, model.config.vocab_size)
    other = np.where(mask == 1, ids, (ids + 1) % model.config.vocab_size).astype(np.int32)
    np.testing.assert_array_equal(run(session, ids, mask), run(session, other, mask))


def test_more_tokens_than_positions_are_refused() -> None:
    model = random_bert(tiny_config())
    ids, mask = batch_of([41], 41, model.config.vocab_size)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of range"):
        run(session_of(model), ids, mask)


def test_building_leaves_the_model_alone() -> None:
    model = random_bert(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    build_onnx(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def value_info(values: Any) -> list[tuple[str, int, list[str | int]]]:
    """(name, element type, dims) of graph inputs or outputs; a named dim is a free one."""
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def test_inputs_and_outputs_are_those_of_the_contract() -> None:
    graph = build_onnx(random_bert(tiny_config(num_labels=5))).graph
    assert value_info(graph.input) == [(name, TensorProto.INT32, ["batch", "tokens"]) for name in (INPUT_IDS, ATTENTION_MASK)]
    assert value_info(graph.output) == [(LOGITS, TensorProto.FLOAT, ["batch", 5])]


def sources_of(initializer: str) -> list[str]:
    """The parameters that an initializer is made of."""
    name = initializer.removesuffix("+type_0").removesuffix(".T")
    return [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")] if ".qkv." in name else [name]


@pytest.mark.parametrize("layers", [1, 3])
def test_initializers_bear_the_names_of_the_parameters_and_leave_none_out(layers: int) -> None:
    model = random_bert(tiny_config(num_hidden_layers=layers))
    constants = {"axis_1", "index_0"}
    names = {tensor.name for tensor in build_onnx(model).graph.initializer}
    assert constants < names
    used = {source for name in names - constants for source in sources_of(name)}
    folded = {"bert.embeddings.token_type_embeddings.weight"}  # its row 0 is added to the positions
    assert used == set(dict(model.named_parameters())) - folded


def test_two_models_of_one_architecture_differ_in_nothing_but_the_values() -> None:
    first, second = (build_onnx(random_bert(tiny_config(), seed=seed)) for seed in (1, 2))
    shapes = [[(tensor.name, tensor.dims, tensor.data_type) for tensor in m.graph.initializer] for m in (first, second)]
    assert shapes[0] == shapes[1]
    assert [t.raw_data for t in first.graph.initializer] != [t.raw_data for t in second.graph.initializer]
    for model in (first, second):
        del model.graph.initializer[:]
    assert first == second


def test_the_same_weights_give_the_same_bytes() -> None:
    model = random_bert(tiny_config())
    assert build_onnx(model).SerializeToString() == build_onnx(model).SerializeToString()


def expected_operators(layers: int) -> dict[str, int]:
    """How often each operator stands in a graph of so many layers."""
    return {
        "EmbedLayerNormalization": 1,
        "Attention": layers - 1,
        "MultiHeadAttention": 1,
        "Gather": 1,
        "SkipLayerNormalization": 2 * layers,
        "BiasGelu": layers,
        "MatMul": 3 * layers + 3,  # attention output and both feed-forward halves; Q, K and V of the last layer
        "Add": 3,
        "Squeeze": 1,
        "Gemm": 2,
        "Tanh": 1,
    }


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_graph_holds_the_fused_operators_and_no_others(layers: int) -> None:
    graph = build_onnx(random_bert(tiny_config(num_hidden_layers=layers))).graph
    assert Counter(node.op_type for node in graph.node) == Counter(expected_operators(layers))
    fused = {"EmbedLayerNormalization", "Attention", "MultiHeadAttention", "SkipLayerNormalization", "BiasGelu"}
    assert {node.op_type for node in graph.node if node.domain == "com.microsoft"} <= fused
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_the_graph_passes_the_checker_and_names_its_versions() -> None:
    model = build_onnx(random_bert(tiny_config()))
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 17, "com.microsoft": 1}
    assert model.ir_version == 10


def test_half_precision_weights_are_exported_in_fp32() -> None:
    half = random_bert(tiny_config()).bfloat16()
    ids, mask = batch_of([9, 4], 9, half.config.vocab_size)
    logits = run(session_of(half), ids, mask)
    np.testing.assert_allclose(logits, reference(half.float(), ids, mask), atol=1e-5, rtol=0)


def test_the_embedded_base_is_exported_as_well() -> None:
    model, _ = load_model(find_base(EMBEDDED), num_labels=7, new_head=True)
    randomise(model.classifier, seed=1, std=0.3)  # logits of several units, not hundredths
    session = session_of(model.eval())
    for lengths, tokens in (([1], 1), ([37, 5, 0], 37), ([512], 512)):
        ids, mask = batch_of(lengths, tokens, model.config.vocab_size)
        np.testing.assert_allclose(run(session, ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)
    operators = Counter(node.op_type for node in build_onnx(model).graph.node)
    assert operators == Counter(expected_operators(model.config.num_hidden_layers))
