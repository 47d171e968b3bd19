"""Nodes, initializers and their types in the making: what the graphs for TensorRT are written with.

TensorRT 11 is strongly typed: what a plan computes in is what its graph says. So the type of every tensor is kept here, casts
stand where a type changes and nowhere else, and a linear layer is quantised exactly when a range of its input is given.

Every initializer is used once and bears its parameter's name, so that two graphs of one architecture differ in nothing but the
values: what refitting a plan needs.

Types: compute, the type of matrix products, and FP32 for all that sums over many numbers (LayerNorm, softmax, the head).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract.command import Failure, UsageError
from training.bert import BertForSequenceClassification

OPSET = 20  # the first with Gelu; LayerNormalization came in 17, FP8 in 19
IR_VERSION = 10

COMPUTE_TYPES: dict[str, int] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "int8": TensorProto.FLOAT16,
    "fp8": TensorProto.FLOAT16,
}
"""What is neither quantised nor a reduction, by precision."""
PRECISIONS = tuple(COMPUTE_TYPES)

_DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.INT8: np.int8,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
}
_QUANTISED: dict[str, tuple[int, float]] = {  # type, largest number
    "int8": (TensorProto.INT8, 127.0),
    "fp8": (TensorProto.FLOAT8E4M3FN, 448.0),  # https://arxiv.org/abs/2209.05433, table 1
}

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Typing:
    """In which types a graph computes."""

    precision: str = "fp32"
    ranges: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of int8 and fp8: the largest magnitude that enters a linear layer, by the layer's module path. Unnamed layers stay in the
    compute type."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"the precision is {self.precision!r}; known are {', '.join(PRECISIONS)}")
        if self.precision not in _QUANTISED and self.ranges:
            raise UsageError(f"ranges are for int8 and fp8, the precision is {self.precision}")
        if self.precision in _QUANTISED and not self.ranges:
            raise UsageError(f"{self.precision} needs the ranges of the layers' inputs; calibrate first")
        broken = {path: value for path, value in self.ranges.items() if not (np.isfinite(value) and value > 0)}
        if broken:
            raise UsageError(f"ranges must be finite and above 0; {len(broken)} are not, such as {next(iter(broken.items()))}")

    @property
    def compute(self) -> int:
        """ONNX's number of the compute type."""
        return COMPUTE_TYPES[self.precision]


class GraphWriter:
    """Each call adds nodes and returns the name of the last one's output, which is the node's name too."""

    def __init__(self, model: BertForSequenceClassification, typing: Typing, inputs: Mapping[str, int]) -> None:
        self.config = model.config
        self.weights = {name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()}
        self.typing = typing
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.types: dict[str, int] = dict(inputs)
        self._quantised: dict[tuple[str, float], str] = {}
        self._linears: set[str] = set()

    def add(self, operator: str, inputs: list[str], output: str, *, type: int | None = None, **attributes: Any) -> str:  # noqa: A002
        """One node; its output has the type of its first input unless `type` says another."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        self.types[output] = self.types[inputs[0]] if type is None else type
        return output

    def constant(self, name: str, value: Any, type: int) -> str:  # noqa: A002
        """An initializer of its own. Raises Failure when a finite number does not fit the type."""
        if name in self.initializers:
            raise ValueError(f"{name} is written twice")
        wanted = np.asarray(value)
        with np.errstate(over="ignore"):
            stored = wanted.astype(_DTYPES[type])
        if wanted.dtype == np.float32 and not np.isfinite(stored.astype(np.float32)).all():
            largest = float(np.abs(wanted).max())
            raise Failure(f"{name} holds {largest:g}, which {self.typing.precision} cannot; build it in bf16 or fp32")
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(stored), name)
        self.types[name] = type
        return name

    def parameter(self, name: str, type: int = TensorProto.FLOAT) -> str:  # noqa: A002
        """A parameter as it is."""
        return self.constant(name, self.weights[name], type)

    def integers(self, name: str, values: Iterable[int] | int) -> str:
        """A constant that ONNX wants in INT64: a shape or axes."""
        return self.constant(name, np.array(values, dtype=np.int64), TensorProto.INT64)

    def cast(self, x: str, type: int) -> str:  # noqa: A002
        """`x` in `type`; a cast that exists already is used again."""
        if self.types[x] == type:
            return x
        output = f"{x}.{helper.tensor_dtype_to_string(type).removeprefix('TensorProto.').lower()}"
        return output if output in self.types else self.add("Cast", [x], output, type=type, to=type)

    def linear(self, path: str, x: str) -> str:
        """x W^T + b in the compute type, W and x through Q/DQ where the layer is quantised."""
        self._linears.add(path)
        x, compute = self.cast(x, self.typing.compute), self.typing.compute
        transposed, name = self.weights[f"{path}.weight"].T, f"{path}.weight.T"  # [out, in] as the [in, out] of MatMul
        if path in self.typing.ranges:
            x, weight = self._quantised_input(x, self.typing.ranges[path]), self._quantised_weight(name, transposed)
        else:
            weight = self.constant(name, transposed, compute)
        product = self.add("MatMul", [x, weight], f"{path}.matmul")
        return self.add("Add", [product, self.parameter(f"{path}.bias", compute)], path)

    def _quantised_input(self, x: str, largest: float) -> str:
        """DQ(Q(x)) with one scale; layers that read the same tensor with the same range share it."""
        key = (x, largest)
        if key not in self._quantised:
            kind, top = _QUANTISED[self.typing.precision]
            name = f"{x}.quantised" + (f".{len(self._quantised)}" if any(x == other for other, _ in self._quantised) else "")
            quantised = self.add("QuantizeLinear", [x, *self._scale(name, np.float32(largest / top), kind)], name, type=kind)
            back = f"{name}.back"
            inputs = [quantised, *self._scale(back, np.float32(largest / top), kind)]
            self._quantised[key] = self.add("DequantizeLinear", inputs, back, type=self.typing.compute)
        return self._quantised[key]

    def _quantised_weight(self, name: str, weight: Array) -> str:
        """DQ of a weight that is stored quantised, one scale for each output, [in, out]."""
        kind, top = _QUANTISED[self.typing.precision]
        scale = np.maximum(np.abs(weight).max(axis=0) / top, np.float32(1e-7))  # an all-zero column needs a scale too
        scale = scale.astype(_DTYPES[self.typing.compute]).astype(np.float32)  # the scale that the graph holds
        stored = np.clip(weight / scale, -top, top)
        stored = stored.round() if kind == TensorProto.INT8 else stored
        back = f"{name}.back"
        inputs = [self.constant(name, stored, kind), *self._scale(back, scale, kind)]
        return self.add("DequantizeLinear", inputs, back, type=self.typing.compute, axis=1)

    def _scale(self, name: str, scale: Any, kind: int) -> list[str]:
        """A scale and its zero point 0, the only one that TensorRT takes."""
        zero = np.zeros(np.shape(scale), dtype=np.int32)
        scales = self.constant(f"{name}.scale", scale, self.typing.compute)
        return [scales, self.constant(f"{name}.zero_point", zero, kind)]

    def finish(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], name: str) -> onnx.ModelProto:
        """The checked model. Raises UsageError for a range of a layer that the model does not have."""
        unknown = sorted(set(self.typing.ranges) - self._linears)
        if unknown:
            raise UsageError(f"there is no linear layer {unknown[0]} to quantise; known are {', '.join(sorted(self._linears))}")
        body = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="builders.graph_writer")
        onnx.checker.check_model(model, full_check=True)
        return model
