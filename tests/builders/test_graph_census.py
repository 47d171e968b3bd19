"""`builders.graph_census` finds what is planted, and `builders.graph_runner` rounds as ONNX's own evaluator does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from builders.graph_census import Census, census, check_graph, check_precision, refit_differences
from builders.graph_runner import graph_engine
from builders.graph_writer import PRECISIONS, skeleton
from builders.onnx_export import build_onnx
from builders.packed_graph import packed_onnx
from builders.standard_graph import EXTRA_OUTPUTS, LABEL_INDEX, standard_onnx
from contract.command import Failure
from contract.tensors import ATTENTION_MASK, INPUT_IDS
from tests.builders.test_onnx_export import batch_of
from tests.builders.test_standard_graph import typing_of
from tests.tiny import random_bert, tiny_config

WRITERS = {"padded": standard_onnx, "packed": packed_onnx}
COMPUTE = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "FLOAT16", "fp8": "FLOAT16"}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_reduction_is_in_fp32_and_every_product_in_the_type_asked_for(precision: str, layout: str) -> None:
    model = random_bert(tiny_config())
    graph = WRITERS[layout](model, typing_of(precision, model), outputs=EXTRA_OUTPUTS)
    found = check_graph(graph)
    check_precision(found, precision)
    linear, attention, head = 6 * 2, 2 * 2, 2
    products = {COMPUTE[precision]: linear + attention} | ({} if precision == "fp32" else {"FLOAT": head})
    assert found.products == (products if precision != "fp32" else {"FLOAT": linear + attention + head})
    assert found.reductions == {"FLOAT": 2 * 2 + 1 + 2 + 1}  # LayerNorms, softmaxes, that of the probabilities
    assert found.quantised == (linear if precision in {"int8", "fp8"} else 0)


def planted(kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A graph whose one reduction sums in `kind`."""
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], name="y", to=kind),
        helper.make_node("Softmax", ["y"], ["z"], name="z"),
        helper.make_node("Cast", ["z"], ["out"], name="out", to=TensorProto.FLOAT),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "planted", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_planted_half_precision_reduction_is_found(kind: int) -> None:
    assert not census(planted()).problems
    name = helper.tensor_dtype_to_string(kind).removeprefix("TensorProto.")
    assert census(planted(kind)).problems == [f"z (Softmax) sums in {name}, wanted FLOAT"]


def test_planted_initializers_are_found() -> None:
    model = standard_onnx(random_bert(tiny_config()))
    norm = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("embeddings.LayerNorm.weight"))
    norm.CopyFrom(numpy_helper.from_array(np.full(32, 7e4, np.float32), norm.name))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "idle"))
    with pytest.raises(Failure) as raised:
        check_graph(model)
    assert "LayerNorm.weight holds 70000, more than FP16's 65504" in str(raised.value)
    assert "idle is used 0 times" in str(raised.value)


def test_a_zero_point_other_than_zero_is_found() -> None:
    bert = random_bert(tiny_config())
    model = standard_onnx(bert, typing_of("int8", bert))
    point = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".zero_point"))
    point.CopyFrom(numpy_helper.from_array(np.int8(3), point.name))
    assert any("is a zero point other than 0" in problem for problem in census(model).problems)


def test_int64_in_arithmetic_and_in_ports_is_found() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["out"], name="sum")]
    ports = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n"]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "planted", ports[:1], ports[1:])
    found = census(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)).problems
    assert found[0] == "sum (Add) reckons in INT64, wanted INT32"
    assert found[1:] == [f"{name} is INT64, wanted FLOAT or INT32" for name in ("x", "out")]


def test_operators_of_a_runtime_are_found() -> None:
    model = build_onnx(random_bert(tiny_config()))
    with pytest.raises(Failure, match=r"embeddings is com\.microsoft's EmbedLayerNormalization, no standard operator"):
        check_graph(model)


@pytest.mark.parametrize(
    ("found", "precision", "message"),
    [
        (Census({"FLOAT": 18}, {}, 0, 0, 0, []), "fp16", "fp16 was asked for, and the graph's matrix products are in"),
        (Census({"FLOAT16": 16, "FLOAT": 3}, {}, 0, 0, 0, []), "fp16", "fp16 was asked for"),
        (Census({"FLOAT16": 16, "FLOAT": 2}, {}, 0, 0, 0, []), "int8", "no matrix product of the graph has a weight in eight"),
        (Census({"FLOAT": 16, "FLOAT16": 2}, {}, 0, 0, 0, []), "fp32", "fp32 was asked for"),
    ],
)
def test_another_precision_than_asked_for_is_refused(found: Census, precision: str, message: str) -> None:
    with pytest.raises(Failure, match=message):
        check_precision(found, precision)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_of_the_same_architecture_fit(precision: str, layout: str) -> None:
    graphs = []
    for seed in (1, 2):
        model = random_bert(tiny_config(), seed=seed)
        if seed == 2:
            for number in range(2):  # equal to another zero bias: still an initializer of its own
                model.get_parameter(f"bert.encoder.layer.{number}.output.dense.bias").data.zero_()
        graphs.append(WRITERS[layout](model, typing_of(precision, model)))
    assert refit_differences(graphs[0], graphs[1]) == []
    bare = skeleton(graphs[0])
    assert refit_differences(onnx.ModelProto.FromString(bare.SerializeToString()), graphs[1]) == []
    assert len(bare.SerializeToString()) < len(graphs[0].SerializeToString()) / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "node bert.encoder.layer.2.attention.output.dense is new"),
        ({"num_hidden_layers": 1}, "node bert.encoder.layer.1.attention.output.dense is missing"),
        ({"intermediate_size": 60}, "initializer bert.encoder.layer.0.intermediate.dense.bias is"),
        ({"num_attention_heads": 8}, "initializer bert.encoder.layer.0.attention.self.key.shape is"),
        ({"num_labels": 4}, "the inputs or outputs differ"),
        ({"layer_norm_eps": 0.5}, "node bert.encoder.layer.0.attention.output.norm is"),
        ({"vocab_size": 91}, "initializer bert.embeddings.word_embeddings.weight is"),
    ],
)
def test_weights_of_another_architecture_do_not_fit(changes: dict[str, object], message: str) -> None:
    plan, other = standard_onnx(random_bert(tiny_config())), standard_onnx(random_bert(tiny_config(**changes)))
    found = refit_differences(plan, other)
    assert any(line.startswith(message) for line in found), found


def test_other_types_and_other_outputs_do_not_fit() -> None:
    model = random_bert(tiny_config())
    plan = standard_onnx(model)
    assert refit_differences(plan, standard_onnx(model, typing_of("fp16", model)))
    assert f"node {LABEL_INDEX} is new" in refit_differences(plan, standard_onnx(model, outputs=[LABEL_INDEX]))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_the_cpu_rounds_as_the_reference_evaluator_does(precision: str) -> None:
    """Both round after every operator; they differ by the order of sums, a last place now and then, never by a missing cast."""
    model = random_bert(tiny_config(), std=0.1)
    graph = standard_onnx(model, typing_of(precision, model, 4.0))
    ids, mask = batch_of([7, 3], 7, model.config.vocab_size)
    exact = graph_engine(standard_onnx(model), threads=1)(ids, mask)
    ours = graph_engine(graph, threads=1)(ids, mask)
    theirs = ReferenceEvaluator(graph).run(None, {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
    bound = {"fp16": 2e-3, "bf16": 2e-2, "int8": 3e-2, "fp8": 6e-2}[precision]
    assert np.abs(ours - theirs).max() < bound
    assert 0 < np.abs(ours - exact).max() < 3 * bound
