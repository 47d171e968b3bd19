"""`builders.standard_graph` and `builders.graph_writer`: what our BERT computes, in the types that were asked for.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from builders.graph_census import census
from builders.graph_runner import graph_engine, open_graph
from builders.graph_writer import PRECISIONS, Typing
from builders.standard_graph import EXTRA_OUTPUTS, LABEL_INDEX, MASKED, PROBABILITIES, standard_onnx
from contract.command import Failure, UsageError
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LOGITS
from tests.builders.test_onnx_export import CONFIGS, batch_of, reference, shapes_up_to, value_info
from tests.tiny import random_bert, tiny_config
from training.bert import BertForSequenceClassification


def linears(model: BertForSequenceClassification) -> list[str]:
    """Module paths of the encoder's linear layers."""
    return [
        f"bert.encoder.{path}" for path, module in model.bert.encoder.named_modules() if isinstance(module, torch.nn.Linear)
    ]


def typing_of(precision: str, model: BertForSequenceClassification, magnitude: float = 8.0) -> Typing:
    """A typing with one range for all where ranges are needed."""
    return Typing(precision, dict.fromkeys(linears(model), magnitude) if precision in {"int8", "fp8"} else {})


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_our_bert_on_every_shape(name: str) -> None:
    model = random_bert(tiny_config(**CONFIGS[name]), seed=len(name))
    engine = graph_engine(standard_onnx(model), threads=1)
    for lengths, tokens in shapes_up_to(model.config.max_position_embeddings):
        ids, mask = batch_of(lengths, tokens, model.config.vocab_size)
        np.testing.assert_allclose(engine(ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)


def test_layers_may_have_different_numbers_of_heads() -> None:
    model = random_bert(tiny_config(num_attention_heads=(2, 8)))
    ids, mask = batch_of([9, 4, 0], 11, model.config.vocab_size)
    logits = graph_engine(standard_onnx(model), threads=1)(ids, mask)
    np.testing.assert_allclose(logits, reference(model, ids, mask), atol=1e-5, rtol=0)


def test_a_gap_in_the_mask_is_a_gap_and_what_stands_under_padding_changes_nothing() -> None:
    model = random_bert(tiny_config())
    engine = graph_engine(standard_onnx(model), threads=1)
    ids, mask = batch_of([9, 9], 9, model.config.vocab_size)
    mask[0, 3], mask[1, 0] = 0, 0
    np.testing.assert_allclose(engine(ids, mask), reference(model, ids, mask), atol=1e-5, rtol=0)
    ids, mask = batch_of([9, 4], 9, model.config.vocab_size)
    other = np.where(mask == 1, ids, (ids + 1) % model.config.vocab_size).astype(np.int32)
    np.testing.assert_array_equal(engine(ids, mask), engine(other, mask))


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.02), ("bf16", 0.15), ("int8", 0.8), ("fp8", 1.0)])
def test_low_precision_is_near_and_never_nan_with_short_and_empty_rows(precision: str, bound: float) -> None:
    model = random_bert(tiny_config())
    engine = graph_engine(standard_onnx(model, typing_of(precision, model, 5.0)), threads=1)
    ids, mask = batch_of([23, 11, 1, 0], 23, model.config.vocab_size)
    difference = np.abs(engine(ids, mask) - reference(model, ids, mask))
    assert np.isfinite(difference).all()
    assert difference.max() < bound
    assert difference.max() > 1e-5  # it does round


def test_scores_beyond_half_precision_stay_finite() -> None:
    model = random_bert(tiny_config())
    for number in range(2):
        model.get_parameter(f"bert.encoder.layer.{number}.attention.self.query.weight").data *= 40
    engine = graph_engine(standard_onnx(model, Typing("fp16")), threads=1)
    ids, mask = batch_of([12, 3, 0], 12, model.config.vocab_size)
    assert np.isfinite(engine(ids, mask)).all()


def test_extra_outputs_are_the_softmax_and_the_index_of_the_largest_logit() -> None:
    model = random_bert(tiny_config())
    ids, mask = batch_of([9, 4], 9, model.config.vocab_size)
    graph = standard_onnx(model, outputs=EXTRA_OUTPUTS)
    kinds = {name: (kind, dims) for name, kind, dims in value_info(graph.graph.output)}
    assert kinds[PROBABILITIES] == (TensorProto.FLOAT, ["batch", 3])
    assert kinds[LABEL_INDEX] == (TensorProto.INT32, ["batch", 1])
    names = [LOGITS, PROBABILITIES, LABEL_INDEX]
    logits, probabilities, labels = open_graph(graph, threads=1).run(names, {INPUT_IDS: ids, ATTENTION_MASK: mask})
    np.testing.assert_allclose(probabilities, torch.tensor(logits).softmax(1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(labels[:, 0], logits.argmax(1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_are_those_of_the_contract_in_every_precision(precision: str) -> None:
    model = random_bert(tiny_config(num_labels=5))
    graph = standard_onnx(model, typing_of(precision, model)).graph
    assert value_info(graph.input) == [(name, TensorProto.INT32, ["batch", "tokens"]) for name in (INPUT_IDS, ATTENTION_MASK)]
    assert value_info(graph.output) == [(LOGITS, TensorProto.FLOAT, ["batch", 5])]
    assert {node.domain for node in graph.node} == {""}


def test_initializers_bear_the_names_of_the_parameters_and_leave_none_out() -> None:
    model = random_bert(tiny_config())
    names = {tensor.name.removesuffix(".T").removesuffix("+type_0") for tensor in standard_onnx(model).graph.initializer}
    folded = {"bert.embeddings.token_type_embeddings.weight"}  # its row 0 is added to the positions
    assert set(dict(model.named_parameters())) - folded <= names


def test_the_same_weights_give_the_same_bytes_and_leave_the_model_alone() -> None:
    model = random_bert(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert standard_onnx(model).SerializeToString() == standard_onnx(model).SerializeToString()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_padding_scores_are_finite_in_fp16_and_below_every_real_one() -> None:
    graph = standard_onnx(random_bert(tiny_config())).graph
    masked = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith(".masked")]
    assert len(masked) == 2
    assert all(value == MASKED == np.float32(-65504) and np.isfinite(np.float16(value)) for value in masked)


def quantised_layers(ranges: Mapping[str, float]) -> tuple[int, Counter[str]]:
    found = standard_onnx(random_bert(tiny_config()), Typing("int8", ranges))
    return census(found).quantised, Counter(node.op_type for node in found.graph.node)


def test_only_layers_with_a_range_are_quantised_and_equal_ranges_share_one_quantisation() -> None:
    layer = "bert.encoder.layer.0.attention.self"
    equal = {f"{layer}.query": 2.0, f"{layer}.key": 2.0}
    assert quantised_layers(equal) == (2, quantised_layers(equal)[1])
    assert quantised_layers(equal)[1]["QuantizeLinear"] == 1
    assert quantised_layers(equal | {f"{layer}.key": 3.0})[1]["QuantizeLinear"] == 2


@pytest.mark.parametrize(
    ("precision", "ranges", "message"),
    [
        ("fp12", {}, "known are fp32, fp16, bf16, int8, fp8"),
        ("fp16", {"a": 1.0}, "ranges are for int8 and fp8"),
        ("int8", {}, "calibrate first"),
        ("fp8", {"a": float("nan")}, "finite and above 0"),
        ("int8", {"a": 0.0}, "finite and above 0"),
    ],
)
def test_wrong_typings_are_refused(precision: str, ranges: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Typing(precision, ranges)


def test_a_range_of_no_layer_is_refused_with_the_layers_there_are() -> None:
    with pytest.raises(UsageError, match=r"no linear layer bert\.pooler\.dense .*known are bert\.encoder\.layer\.0"):
        standard_onnx(random_bert(tiny_config()), Typing("int8", {"bert.pooler.dense": 1.0}))


def test_a_weight_that_fp16_cannot_hold_is_refused_by_name() -> None:
    model = random_bert(tiny_config())
    model.get_parameter("bert.encoder.layer.1.output.dense.weight").data[0, 0] = 1e6
    with pytest.raises(Failure, match=r"layer\.1\.output\.dense\.weight\.T holds 1e\+06, which fp16 cannot"):
        standard_onnx(model, Typing("fp16"))
    standard_onnx(model, Typing("bf16"))


def test_an_all_zero_weight_column_can_be_quantised() -> None:
    model = random_bert(tiny_config())
    model.get_parameter("bert.encoder.layer.0.output.dense.weight").data[3] = 0
    ids, mask = batch_of([5], 5, model.config.vocab_size)
    assert np.isfinite(graph_engine(standard_onnx(model, typing_of("int8", model)), threads=1)(ids, mask)).all()


def test_the_graph_names_its_versions() -> None:
    graph: Any = standard_onnx(random_bert(tiny_config()))
    assert {opset.domain: opset.version for opset in graph.opset_import} == {"": 20}
    assert graph.ir_version == 10
