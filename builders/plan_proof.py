"""Proof that a plan is in the precision that was asked for: TensorRT widens in silence where it lacks a kernel.

Three looks at it, each failing the build: the layers of the parsed network, one by one the types that the graph has; the size
of the plan, which must be that of the graph's weights; and, where a GPU can open the plan, the types that the engine inspector
reports of the layers that were really built, those of matrix products above all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from builders.graph_census import Census
from contract.command import Failure

_NETWORK_TYPES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "BFLOAT16": "BF16"}
_QUANTISED_TYPES = {"int8": "INT8", "fp8": "FP8"}
_INSPECTED: dict[str, str] = {  # what the inspector's texts call a type: `Half` or `FP16`, by TensorRT's version
    "fp32": r"\b(fp32|float|float32)\b",
    "fp16": r"\b(fp16|half|float16)\b",
    "bf16": r"\b(bf16|bfloat16)\b",
    "int8": r"\bint8\b",
    "fp8": r"\b(fp8|float8|e4m3)\w*",
}
_PRODUCTS = "gemm|matmul|matrix_?multiply|fully_?connected|mha"
SHOWN = 3
SLACK = 1.25
CODE_BYTES = 16 * 2**20
"""Kernels and layer descriptions in a plan, for each profile; 10 MB at MiniLM's size with two profiles (TensorRT-RTX 1.7)."""


@dataclass(frozen=True)
class PlanSize:
    """How large a plan is against what it must hold."""

    plan_bytes: int
    weight_bytes: int
    parameters: int
    profiles: int

    @property
    def bytes_per_parameter(self) -> float:
        """Of the whole plan, its kernels included."""
        return self.plan_bytes / self.parameters

    @property
    def largest(self) -> int:
        """What the plan may weigh: each profile may lay the weights out in its own way and brings its kernels."""
        return int(self.profiles * (SLACK * self.weight_bytes + CODE_BYTES))


def check_network(found: Mapping[tuple[str, str], int], graph: Census, precision: str) -> None:
    """Compare the parsed network with the graph.

    Args:
        found: how often a layer type gives an output type, as {("MATRIX_MULTIPLY", "HALF"): 48}.
        graph: the census of the graph that was parsed.
        precision: that was asked for.

    Raises:
        Failure: TensorRT's network computes in other types.
    """
    products = {kind: count for (layer, kind), count in found.items() if layer == "MATRIX_MULTIPLY"}
    wanted = {_NETWORK_TYPES[kind]: count for kind, count in graph.products.items()}
    problems = [] if products == wanted else [f"matrix products are in {products}, the graph's in {wanted}"]
    for (layer, kind), count in found.items():
        if layer.startswith(("SOFTMAX", "NORMALIZATION")) and kind != "FLOAT":
            problems.append(f"{count} {layer} are in {kind}, wanted FLOAT")
    if precision in _QUANTISED_TYPES:
        eight = {kind: count for (layer, kind), count in found.items() if layer == "QUANTIZE"}
        back = sum(count for (layer, _), count in found.items() if layer == "DEQUANTIZE")
        if set(eight) != {_QUANTISED_TYPES[precision]} or back < graph.quantised:
            problems.append(f"{eight} is quantised and {back} dequantised for {graph.quantised} layers in {precision}")
    if problems:
        raise Failure(f"TensorRT's network is not the {precision} that was asked for:\n  " + "\n  ".join(problems))


def check_size(size: PlanSize, precision: str) -> None:
    """Raise Failure when a plan is too large for weights in `precision`, or too small to hold them."""
    if size.plan_bytes > size.largest:
        raise Failure(
            f"the plan has {size.plan_bytes:,} bytes ({size.bytes_per_parameter:.2f} a parameter) for {size.weight_bytes:,} "
            f"bytes of {precision} weights; at most {size.largest:,} are plausible: TensorRT kept wider weights"
        )
    if size.plan_bytes < size.weight_bytes * 0.9:
        raise Failure(
            f"the plan has {size.plan_bytes:,} bytes ({size.bytes_per_parameter:.2f} a parameter), less than its "
            f"{size.weight_bytes:,} bytes of {precision} weights: weights were stripped or narrowed"
        )


def check_inspected(information: str, graph: Census, precision: str, *, profiles: int) -> Counter[str]:
    """Hold the engine that was really built to `precision`, as far as the engine inspector describes its layers.

    TensorRT 10 writes "Format/Datatype": "Row major linear FP16 format"; 11 splits it into "Format" and "DataType". Spelling
    differs by version, so all that is said of a tensor's format or type is looked at. A layer of matrix products is known by
    its name, type or tactic, and is in the precision when any of its tensors is. Fusion makes such layers fewer, never more.

    Args:
        information: the inspector's JSON.
        graph: the census of the graph that was parsed.
        profiles: of the plan; each may have layers of its own.

    Returns:
        How many output tensors are in each precision.

    Raises:
        Failure: no layer is in `precision`, or more layers of products are not than the graph has products in other types.
    """
    layers = [layer for layer in json.loads(information)["Layers"] if isinstance(layer, dict)]
    found = Counter(kind for layer in layers for tensor in layer.get("Outputs", []) for kind in _types([tensor]))
    if not found:
        raise Failure("the engine inspector names no type; the plan was built without detailed profiling verbosity")
    if not found[precision]:
        raise Failure(f"no layer of the plan is in {precision}; its outputs are {dict(found)}")
    products = [layer for layer in layers if _multiplies(layer)]
    wide = [layer for layer in products if precision not in _types([*layer.get("Inputs", []), *layer.get("Outputs", [])])]
    allowed = profiles * _other_products(graph, precision)
    if len(wide) > allowed:
        names = ", ".join(str(layer.get("Name")) for layer in wide[:SHOWN])
        raise Failure(
            f"{len(wide)} of {len(products)} layers of matrix products in the plan are not in {precision}, the graph asks for "
            f"at most {allowed}: TensorRT widened them, as {names}"
        )
    return found


def _types(tensors: Iterable[Mapping[str, Any]]) -> list[str]:
    """The precisions that the inspector's words for these tensors name, once a tensor."""
    said = [
        " ".join(str(value) for key, value in tensor.items() if re.search("format|type", key, re.IGNORECASE))
        for tensor in tensors
    ]
    return [kind for text in said for kind, pattern in _INSPECTED.items() if re.search(pattern, text, re.IGNORECASE)]


def _multiplies(layer: Mapping[str, Any]) -> bool:
    """Whether a layer is one of matrix products. Names of the graph stand in its own, so `attention` there says nothing."""
    kind, name = str(layer.get("LayerType", "")), str(layer.get("Name", ""))
    if re.search("reformat|quantize|cast", kind, re.IGNORECASE):  # before a product, and named like it
        return False
    known = re.search(f"{_PRODUCTS}|attention", f"{kind} {layer.get('TacticName', '')}", re.IGNORECASE)
    return bool(known or re.search(_PRODUCTS, name, re.IGNORECASE))


def _other_products(graph: Census, precision: str) -> int:
    """Matrix products of the graph that are not meant to be in `precision`: pooler, classifier, attention beside int8."""
    if precision in _QUANTISED_TYPES:
        return sum(graph.products.values()) - graph.quantised
    wanted = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}[precision]
    return sum(count for kind, count in graph.products.items() if kind != wanted)


def proof_record(size: PlanSize, network: Mapping[tuple[str, str], int], inspected: Mapping[str, int] | None) -> dict[str, Any]:
    """The proof as it stands in the release's manifest."""
    return {
        "plan_bytes": size.plan_bytes,
        "weight_bytes": size.weight_bytes,
        "bytes_per_parameter": round(size.bytes_per_parameter, 3),
        "network": {f"{layer} {kind}": count for (layer, kind), count in sorted(network.items())},
        "inspected": None if inspected is None else dict(inspected),
    }
