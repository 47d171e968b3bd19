"""A typed graph run on the CPU as a GPU would round it: how a plan's numbers are known before there is a GPU.

ONNX Runtime has few kernels for FP16 and none for BF16 on a CPU. So everything is computed in FP32, and what the graph holds in
a half type is rounded to that type each time it is made: as a GPU does, whose matrix products sum in FP32 and store in half.
Q and DQ stay two operators; ONNX Runtime would make integer products of them, which round by the processor's rules.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from builders.graph_writer import Array, infer_types
from builders.packed_graph import OFFSETS, packed_batch
from builders.parity import Engine, Float32, Int32, feed_of
from contract.tensors import LOGITS

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def rounded_in_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation in FP32 that rounds where `model` holds a half type."""
    kinds = infer_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type in HALVES:
            wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
    nodes = [made for node in model.graph.node for made in _rounding(node, kinds[node.output[0]])]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _rounding(node: onnx.NodeProto, kind: int) -> Iterator[onnx.NodeProto]:
    """The node in FP32 and, where its output is of a half type, the rounding of it."""
    if kind not in HALVES:
        yield node
        return
    output, exact, half = node.output[0], f"{node.output[0]}.exact", f"{node.output[0]}.half"
    if node.op_type == "Cast":
        exact = node.input[0]
    else:
        wide = onnx.NodeProto()
        wide.CopyFrom(node)
        wide.output[0] = exact
        yield wide
    yield helper.make_node("Cast", [exact], [half], name=half, to=kind)
    yield helper.make_node("Cast", [half], [output], name=f"{output}.rounded", to=TensorProto.FLOAT)


def open_graph(model: onnx.ModelProto, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session on the CPU that rounds as `model` says; 0 threads are all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = rounded_in_fp32(model).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def graph_engine(model: onnx.ModelProto, *, threads: int = 0) -> Engine:
    """The graph, padded or packed, as `builders.parity` calls an engine. Packed ones take no row without a token."""
    session = open_graph(model, threads=threads)
    packed = OFFSETS in {value.name for value in model.graph.input}

    def run(*inputs: Array) -> Float32:
        feed = pack(*inputs) if packed else feed_of(inputs)
        logits: Float32 = session.run([LOGITS], feed)[0]
        return logits

    return run


def pack(ids: Int32, mask: Int32) -> dict[str, Int32]:
    """Padded [B, T] as the packed graph's inputs. Raises ValueError for a row without a token, which no text is."""
    lengths = mask.sum(axis=1)
    if not lengths.all():
        raise ValueError(f"row {int(lengths.argmin())} has no token")
    return packed_batch(lengths.tolist(), ids[mask != 0].tolist())
