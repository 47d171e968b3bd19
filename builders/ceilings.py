"""What this machine's cores can compute at most: a large matrix product in fp32, bf16 and int8, and a BERT's work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from builders.hardware import cpu_flags, has_bf16
from builders.served import engine_module
from training.bert_config import BertConfig

SIZE = 2048
OPERATIONS = 2 * SIZE**3
"""Of one product of two SIZE x SIZE matrices."""


def ceiling_calls() -> dict[str, Callable[[], object]]:
    """One product by precision and runtime, `fp32 openvino`; the best of a precision is its ceiling.

    int8 is u8 x s8 with a constant weight, as in an engine; PyTorch has none that our engines use.
    """
    matrix = torch.rand(SIZE, SIZE)
    narrow, values = matrix.bfloat16(), np.random.default_rng(0).random((SIZE, SIZE), dtype=np.float32)
    calls: dict[str, Callable[[], object]] = {"fp32 torch": lambda: matrix @ matrix, "bf16 torch": lambda: narrow @ narrow}
    calls["fp32 onnxruntime"] = _in_onnxruntime(_fp32_graph(), values)
    calls["int8 onnxruntime"] = _in_onnxruntime(_integer_graph(), (255 * values).astype(np.uint8))
    calls["fp32 openvino"] = _in_openvino(_fp32_graph(), "f32", values)
    calls["int8 openvino"] = _in_openvino(_qdq_graph(), "f32", values)
    if has_bf16(cpu_flags()):
        calls["bf16 openvino"] = _in_openvino(_fp32_graph(), "bf16", values)
    return calls


def _fp32_graph() -> onnx.ModelProto:
    return _product(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])], TensorProto.FLOAT, TensorProto.FLOAT, [_weight(np.float32)]
    )


def _integer_graph() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])]
    return _product(nodes, TensorProto.UINT8, TensorProto.INT32, [_weight(np.int8)])


def _qdq_graph() -> onnx.ModelProto:
    """As OpenVINO reads int8: fp32 in and out, Q/DQ nodes before both factors."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["quantised"]),
        helper.make_node("DequantizeLinear", ["quantised", "scale", "zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "none"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["y"]),
    ]
    constants = {"scale": np.float32(0.01), "zero": np.uint8(0), "none": np.int8(0)}
    given = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return _product(nodes, TensorProto.FLOAT, TensorProto.FLOAT, [_weight(np.int8), *given])


def _weight(dtype: type) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(0).integers(-64, 64, (SIZE, SIZE)).astype(dtype), "weight")


def _product(nodes: list[onnx.NodeProto], reads: int, writes: int, constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("x", reads, [SIZE, SIZE])
    found = helper.make_tensor_value_info("y", writes, [SIZE, SIZE])
    graph = helper.make_graph(nodes, "product", [given], [found], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _in_onnxruntime(graph: onnx.ModelProto, values: npt.NDArray[Any]) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": values})


def _in_openvino(graph: onnx.ModelProto, computes: str, values: npt.NDArray[Any]) -> Callable[[], object]:
    core = engine_module().openvino_core()
    options = {"INFERENCE_PRECISION_HINT": computes, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", options).create_infer_request()
    return lambda: request.infer({"x": values}, share_inputs=True, share_outputs=True)


def bert_operations(config: BertConfig, *, batch: int, tokens: int) -> int:
    """Multiplications and additions of the encoder's matrix products for [batch, tokens], as our engines compute them.

    Of the last layer only K and V are computed for every token, and all else for the first alone.
    """
    wide, narrow = config.intermediate_size, config.hidden_size
    rest = 2 * narrow * narrow + 2 * narrow * wide  # Q, attention's output, both halves of the feed-forward
    full = 2 * tokens * (rest + 2 * narrow * narrow) + 4 * tokens * tokens * narrow
    last = 2 * (rest + 2 * tokens * narrow * narrow) + 4 * tokens * narrow
    return batch * ((config.num_hidden_layers - 1) * full + last)
