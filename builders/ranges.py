"""The ranges of the activations that go into matrix products, observed on texts as a graph computes them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnxruntime
from onnx import TensorProto, helper
from tqdm import tqdm

from builders.parity import Inputs, feed_of
from training.ranges import Range, RangeObserver


def product_inputs(graph: onnx.ModelProto) -> dict[str, str]:
    """Each MatMul node that has a constant second factor, with the name of its first."""
    constants = {initializer.name for initializer in graph.graph.initializer}
    return {node.name: node.input[0] for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in constants}


def observe_ranges(graph: onnx.ModelProto, batches: Sequence[Inputs]) -> dict[str, dict[str, Range]]:
    """Ranges of every product's input by the name of the percentile, over all tokens of `batches` but padding."""
    tensors = sorted(set(product_inputs(graph).values()))
    session, observer = _observing(graph, tensors), RangeObserver()
    for title in observer.passes():
        for inputs in tqdm(batches, desc=title, unit="batches", mininterval=0.5):
            mask = inputs[1]
            for tensor, value in zip(tensors, session.run(tensors, feed_of(inputs)), strict=True):
                observer.see(tensor, value[mask == 1] if value.shape[1] == mask.shape[1] else value)  # or first tokens alone
    return observer.ranges()


def _observing(graph: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session that also gives out `tensors`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.output.extend(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None) for tensor in tensors)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
