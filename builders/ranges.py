"""The ranges of the activations that go into matrix products, observed on texts, at several percentiles at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from tqdm import tqdm

from builders.parity import Inputs, feed_of

Ranges = Mapping[str, tuple[float, float]]
"""Tensor name -> (least, greatest) value that int8 represents."""

PERCENTILES = {"99.9": 99.9, "99.99": 99.99, "99.999": 99.999, "99.9999": 99.9999, "min-max": 100.0}
"""Name -> share of the values, in percent, that lie inside the range; half of the rest is cut off at each end."""

BINS = 16_384  # of a histogram; a percentile is exact to a bin


def product_inputs(graph: onnx.ModelProto) -> dict[str, str]:
    """Each MatMul node that has a constant second factor, with the name of its first."""
    constants = {initializer.name for initializer in graph.graph.initializer}
    return {node.name: node.input[0] for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in constants}


def observe_ranges(graph: onnx.ModelProto, batches: Sequence[Inputs]) -> dict[str, Ranges]:
    """Ranges of every product's input by the name of the percentile, over all tokens of `batches` but padding.

    Two passes, for extremes and then for histograms between them, so that no activation has to be kept.
    """
    tensors = sorted(set(product_inputs(graph).values()))
    session = _observing(graph, tensors)
    low = dict.fromkeys(tensors, np.inf)
    high = dict.fromkeys(tensors, -np.inf)
    counts = {tensor: np.zeros(BINS, np.int64) for tensor in tensors}
    for histogram in (False, True):
        for inputs in tqdm(batches, desc="histograms" if histogram else "extremes", unit="batches", mininterval=0.5):
            mask = inputs[1]
            for tensor, value in zip(tensors, session.run(tensors, feed_of(inputs)), strict=True):
                real = value[mask == 1] if value.shape[1] == mask.shape[1] else value  # or of the first tokens alone
                if histogram:
                    counts[tensor] += np.histogram(real, bins=BINS, range=(low[tensor], high[tensor]))[0]
                else:
                    low[tensor] = min(low[tensor], float(real.min()))
                    high[tensor] = max(high[tensor], float(real.max()))
    return {
        name: {tensor: _cut(counts[tensor], low[tensor], high[tensor], percent) for tensor in tensors}
        for name, percent in PERCENTILES.items()
    }


def _observing(graph: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session that also gives out `tensors`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    copy.graph.output.extend(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None) for tensor in tensors)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _cut(counts: npt.NDArray[np.int64], low: float, high: float, percent: float) -> tuple[float, float]:
    """The part of [low, high] that holds `percent` of the counted values; 0 is always inside."""
    shares = np.cumsum(counts) / counts.sum()
    outside = (1 - percent / 100) / 2
    edges = np.linspace(low, high, BINS + 1)
    first = int(np.searchsorted(shares, outside, side="right"))
    last = int(np.searchsorted(shares, 1 - outside, side="left"))
    return min(0.0, float(edges[first])), max(0.0, float(edges[min(last + 1, BINS)]))
