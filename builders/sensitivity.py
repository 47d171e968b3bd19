"""How much int8 costs each matrix product by itself, each operator over all layers, and each layer: which should go back first.

What a product's own layer is given does not depend on it, so the layers before are computed once, in fp32, and only the rest
of the graph is run again for each product.

Shapes: B texts, T tokens, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from tqdm import tqdm

from builders.parity import TextBatch, feed_of
from builders.quantization_report import Setting, judge_logits
from builders.ranges import product_inputs
from contract.tensors import LOGITS

ENTRY = "attention.self.key"
"""The product of a layer whose input is all that the layer reads of the layers before."""

Feeds = list[dict[str, npt.NDArray[Any]]]
"""What a graph is given, for every batch."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What int8 changes where only a part of the products is in it."""

    products: dict[str, Setting]
    """One product, by its exact node name."""
    operators: dict[str, Setting]
    """One operator in every layer."""
    layers: dict[str, Setting]
    """Every product of one layer, `layer 3`."""


def measure_sensitivity(
    graph: onnx.ModelProto,
    quantise: Callable[[onnx.ModelProto, list[str]], onnx.ModelProto],
    batches: Sequence[TextBatch],
    labels: Sequence[int],
) -> Sensitivity:
    """Judge each product, operator and layer in int8 alone beside fp32.

    Args:
        graph: fp32, with every product a node of its own.
        quantise: (graph, names of products) -> a copy with these in int8.
        batches: of texts, which are judged.
        labels: of their rows, or none.
    """
    inputs, names = product_inputs(graph), list(product_inputs(graph))
    texts: Feeds = [feed_of(given) for _, given in batches]
    order = np.argsort(np.concatenate([rows for rows, _ in batches]))  # batches are by rising length
    exact = np.concatenate(_run(graph, texts, LOGITS))[order]
    feeds = texts

    def judge(part: onnx.ModelProto, of: list[str], name: str) -> Setting:
        return judge_logits(name, np.concatenate(_run(quantise(part, of), feeds, LOGITS))[order], exact, labels)

    operators = {
        name: judge(graph, of, name) for name, of in tqdm(by_operator(names).items(), desc="operators", unit="operators")
    }
    products, layers = {}, {}
    with tqdm(total=len(names), desc="sensitivity", unit="products") as progress:
        for layer, members in by_layer(names).items():
            entry = inputs[f"bert.encoder.layer.{layer}.{ENTRY}.matmul"]
            states = _run(graph, feeds, entry)  # of the layers from the last entry to this one
            feeds = [text | {entry: state} for text, state in zip(texts, states, strict=True)]
            graph = after(graph, entry)
            layers[f"layer {layer}"] = judge(graph, members, f"layer {layer}")
            for name in members:
                products[name] = judge(graph, [name], name)
                progress.update()
    return Sensitivity(products=products, operators=operators, layers=layers)


def after(graph: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The part of `graph` that computes the logits once `tensor`, FP32 [B, T, D], is given to it."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    wanted, kept = [LOGITS], set()
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if not name or name in needed:  # an input that is left out has no name
            continue
        needed.add(name)
        if name != tensor and name in makers:
            kept.add(makers[name].name)
            wanted += makers[name].input
    body = helper.make_graph(
        [node for node in graph.graph.node if node.name in kept],
        graph.graph.name,
        [
            *(value for value in graph.graph.input if value.name in needed and value.name != tensor),
            helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None),
        ],
        list(graph.graph.output),
        [constant for constant in graph.graph.initializer if constant.name in needed],
    )
    return helper.make_model(body, opset_imports=graph.opset_import, ir_version=graph.ir_version)


def _run(graph: onnx.ModelProto, feeds: Feeds, output: str) -> list[npt.NDArray[np.float32]]:
    """`output` of every batch; a graph takes what it needs of a feed."""
    if output in {value.name for value in graph.graph.input}:
        return [feed[output] for feed in feeds]
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [session.run([output], {name: feed[name] for name in names})[0] for feed in feeds]


def by_operator(names: Sequence[str]) -> dict[str, list[str]]:
    """Exact node names by what they do, `bert.encoder.layer.3.output.dense.matmul` under `output.dense`."""
    return _grouped(names, lambda name: operator_of(name)[1])


def by_layer(names: Sequence[str]) -> Mapping[int, list[str]]:
    """Exact node names by their layer, rising."""
    return dict(sorted(_grouped(names, lambda name: operator_of(name)[0]).items()))


def _grouped(names: Sequence[str], key: Callable[[str], Any]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return found


def operator_of(name: str) -> tuple[int, str]:
    """(layer, operator) of a product's node name."""
    layer, operator = name.removeprefix("bert.encoder.layer.").split(".", maxsplit=1)
    return int(layer), operator.removesuffix(".matmul")
