"""What stands in an ONNX graph: which types it computes in, what would break it in half precision, and what a refit needs.

`check_graph` is asked of every graph before it goes to TensorRT, which would only say that a plan is slow, large or NaN.
`refit_differences` says why the weights of one graph do not fit into the plan of another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.graph_writer import COMPUTE_TYPES
from contract.command import Failure

REDUCTIONS = frozenset({"LayerNormalization", "Softmax", "LogSoftmax", "GlobalAveragePool", "CumSum"})
"""Beside what is called Reduce...: operators that sum over many numbers."""
PRODUCTS = frozenset({"MatMul", "Gemm"})
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Equal", "GreaterOrEqual", "Where", "Range"})
HEAD_PRODUCTS = 2
"""Pooler and classifier, which `builders.standard_graph.head` keeps in FP32."""
FP16_MAX = float(np.finfo(np.float16).max)
_INTEGERS = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)


@dataclass(frozen=True)
class Census:
    """What was counted, and what is wrong."""

    products: dict[str, int]
    """Matrix products by the type of their inputs."""
    reductions: dict[str, int]
    """Reductions over floating-point numbers by type."""
    quantised: int
    """Matrix products whose weight is stored in eight bits."""
    weight_bytes: int
    """Of all initializers."""
    parameters: int
    """Numbers in all initializers of floating point or eight bits."""
    problems: list[str]


def census(model: onnx.ModelProto) -> Census:
    """Count, and find what would fail on TensorRT or in half precision; see `Census.problems`."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = _types(graph)
    products = Counter(_name(types[node.input[0]]) for node in graph.node if node.op_type in PRODUCTS)
    reductions = Counter(
        _name(types[node.input[0]]) for node in graph.node if _reduces(node) and types[node.input[0]] not in _INTEGERS
    )
    makers = {output: node for node in graph.node for output in node.output}
    dequantised = {
        node.output[0] for node in makers.values() if node.op_type == "DequantizeLinear" and node.input[0] not in makers
    }
    quantised = sum(node.op_type in PRODUCTS and node.input[1] in dequantised for node in graph.node)
    return Census(
        dict(products),
        dict(reductions),
        quantised,
        sum(len(tensor.raw_data) for tensor in graph.initializer),
        sum(int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.data_type not in _INTEGERS),
        [*_foreign(graph), *_wrong_types(graph, types), *_wrong_initializers(graph)],
    )


def check_graph(model: onnx.ModelProto) -> Census:
    """The census of a graph without problems. Raises Failure that names all problems."""
    found = census(model)
    if found.problems:
        raise Failure("the graph is not fit for TensorRT:\n  " + "\n  ".join(found.problems))
    return found


def check_precision(found: Census, precision: str) -> None:
    """Raise Failure unless the products are in the type that `precision` means; the head's two are FP32 in all."""
    wanted = _name(COMPUTE_TYPES[precision])
    wide = sum(found.products.values()) - found.products.get(wanted, 0)
    if precision in {"int8", "fp8"} and not found.quantised:
        raise Failure(f"{precision} was asked for, and no matrix product of the graph has a weight in eight bits")
    if wide > (0 if precision == "fp32" else HEAD_PRODUCTS):
        raise Failure(f"{precision} was asked for, and the graph's matrix products are in {found.products}")


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _name(kind: int) -> str:
    return str(helper.tensor_dtype_to_string(kind)).removeprefix("TensorProto.")


def _reduces(node: onnx.NodeProto) -> bool:
    return node.op_type in REDUCTIONS or node.op_type.startswith("Reduce")


def _foreign(graph: onnx.GraphProto) -> list[str]:
    return [f"{node.name} is {node.domain}'s {node.op_type}, no standard operator" for node in graph.node if node.domain]


def _wrong_types(graph: onnx.GraphProto, types: dict[str, int]) -> list[str]:
    """Reductions in less than FP32, inputs and outputs in other types, INT64 that is more than a shape or an index."""
    found = []
    for node in graph.node:
        kind = types[node.input[0]]
        if _reduces(node) and kind not in (TensorProto.FLOAT, *_INTEGERS):
            found.append(f"{node.name} ({node.op_type}) sums in {_name(kind)}, wanted FLOAT")
        if node.op_type in ARITHMETIC and kind == TensorProto.INT64:
            found.append(f"{node.name} ({node.op_type}) reckons in INT64, wanted INT32")
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.INT32):
            found.append(f"{value.name} is {_name(value.type.tensor_type.elem_type)}, wanted FLOAT or INT32")
    return found


def _wrong_initializers(graph: onnx.GraphProto) -> list[str]:
    """Numbers that FP16 does not hold, initializers used twice, zero points other than 0."""
    uses = Counter(name for node in graph.node for name in node.input)
    quantising = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    zero_points = {node.input[2] for node in quantising if len(node.input) == 3}
    found = []
    for tensor in graph.initializer:
        if uses[tensor.name] != 1:
            found.append(f"{tensor.name} is used {uses[tensor.name]} times, wanted once")
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
            largest = float(np.abs(numpy_helper.to_array(tensor).astype(np.float32)).max(initial=0))
            if not largest <= FP16_MAX:
                found.append(f"{tensor.name} holds {largest:g}, more than FP16's {FP16_MAX:g}")
        if tensor.name in zero_points and np.any(numpy_helper.to_array(tensor).astype(np.float32)):
            found.append(f"{tensor.name} is a zero point other than 0")
    return found


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without its weights: what a later graph is compared with before a refit, in a few kilobytes."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.data_type not in _INTEGERS:
            tensor.ClearField("raw_data")
    return bare


def refit_differences(plan: onnx.ModelProto, weights: onnx.ModelProto) -> list[str]:
    """Why the weights of one graph do not fit into the plan of another; empty when they do.

    Two graphs are refit-compatible when their nodes (operator, inputs, outputs, attributes) and the names, types and shapes of
    their initializers are equal, and of integers, which are shapes and indices, the values too. Skeletons do.
    """
    found = _differences("node", _nodes(plan), _nodes(weights))
    found += _differences("initializer", _initializers(plan), _initializers(weights))
    if [_port(value) for value in (*plan.graph.input, *plan.graph.output)] != [
        _port(value) for value in (*weights.graph.input, *weights.graph.output)
    ]:
        found.append("the inputs or outputs differ")
    return found


def _differences(what: str, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    lost, new = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    found = [f"{what} {name} is missing" for name in lost] + [f"{what} {name} is new" for name in new]
    return found + [
        f"{what} {name} is {second[name]}, the plan's is {first[name]}"
        for name in first
        if name in second and first[name] != second[name]
    ]


def _nodes(model: onnx.ModelProto) -> dict[str, Any]:
    """By the first output, which is unique."""
    return {
        node.output[0]: (
            node.domain,
            node.op_type,
            list(node.input),
            list(node.output),
            sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute),
        )
        for node in model.graph.node
    }


def _initializers(model: onnx.ModelProto) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).tolist() if tensor.data_type in _INTEGERS else "weights"
        found[tensor.name] = (_name(tensor.data_type), list(tensor.dims), values)
    return found


def _port(value: onnx.ValueInfoProto) -> bytes:
    data: bytes = value.SerializeToString(deterministic=True)
    return data
