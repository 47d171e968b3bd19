"""Static int8 for the CPU engines: Q/DQ nodes around the matrix products, calibrated, measured layer by layer, and no more of
them than the accuracy bears.

1. Ranges of every product's input are observed on training texts, as histograms.
2. A sweep over percentiles of those ranges, everything quantised, on the validation part: of those that pass the accuracy gate
   the least error of the logits wins, and of those as good as equal the widest ranges.
3. While the gate does not hold, the most sensitive product that is left goes back to fp32.
   `builders.sensitivity` measures that, of each product, operator and layer; otherwise only for the report.

Q/DQ nodes are inserted by onnxruntime's quantizer, by exact node name. Weights are symmetric, a scale per output channel, and
use 7 bits: with 8, the int8 products of processors without VNNI saturate. Activations are 8 bits with a zero point, where
products read them: the residual stream stays exact. The pooler, the classifier, the softmax and LayerNorm stay in fp32: they
are a thousandth of the work.

Shapes: R rows of texts, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from tokenizers import Tokenizer
from tqdm import tqdm

from builders.calibration import Calibration
from builders.onnx_export import build_onnx
from builders.parity import Float32, TextBatch, feed_of, text_batches
from builders.quantization_report import QuantizationReport, Setting, judge_logits
from builders.ranges import observe_ranges, product_inputs
from builders.sensitivity import Sensitivity, measure_sensitivity
from contract.command import Failure, UsageError
from contract.tensors import LOGITS
from training.batches import Encoded
from training.bert import BertForSequenceClassification
from training.ranges import PERCENTILES, Ranges, widest_of_the_best

SENSITIVITY_ROWS = 256
"""Validation texts on which single products are compared: minutes for MiniLM, and the report says how much is noise."""


@dataclass(frozen=True)
class Judge:
    """The validation texts with the fp32 graph's own answers."""

    batches: list[TextBatch]
    logits: Float32
    labels: list[int]

    def judge(self, graph: onnx.ModelProto, name: str) -> Setting:
        """Error, flips and accuracy of a quantised graph."""
        return judge_logits(name, run_graph(graph, self.batches, self.logits.shape), self.logits, self.labels)


def quantise_model(
    model: BertForSequenceClassification, tokenizer: Tokenizer, calibration: Calibration, *, explain: bool = False
) -> tuple[onnx.ModelProto, QuantizationReport]:
    """The int8 graph of `model`, and how it came about (see the module docstring); `explain`s with every sensitivity.

    Raises:
        UsageError: no texts to calibrate on.
        Failure: the gate does not hold with a single product in int8.
    """
    if not calibration.texts or not calibration.validation:
        raise UsageError("int8 is calibrated on texts, and there are none; pass some by --calibration-texts FILE")
    graph = build_onnx(model, joint_attention=False)
    padding = model.config.pad_token_id
    observed = text_batches(calibration.encode(tokenizer), padding)
    ranges = observe_ranges(graph, [inputs for _, inputs in observed])
    judge = make_judge(graph, calibration.encode_validation(tokenizer), padding)
    names = list(product_inputs(graph))
    sweep = [judge.judge(insert_qdq(graph, ranges[key], names), key) for key in tqdm(PERCENTILES, desc="percentiles")]
    passing = {setting.name: setting for setting in sweep if setting.passes} or {setting.name: setting for setting in sweep}
    chosen = passing[widest_of_the_best({name: setting.error for name, setting in passing.items()})]
    best = ranges[chosen.name]
    quantised, steps = insert_qdq(graph, best, names), [dataclasses.replace(chosen, name="all products")]
    found = Sensitivity(products={}, operators={}, layers={})
    few = calibration.encode_validation(tokenizer, SENSITIVITY_ROWS)
    if explain or not chosen.passes:
        batches = text_batches(few, padding)
        found = measure_sensitivity(graph, lambda part, of: insert_qdq(part, best, of), batches, few.labels)
    if not chosen.passes:
        errors = {name: setting.error for name, setting in found.products.items()}
        quantised, more = exclude_until_accurate(graph, best, errors, judge)
        steps += more
    report = QuantizationReport(
        calibration=calibration.origin,
        calibration_texts=len(calibration.texts),
        validation_texts=len(calibration.validation),
        sweep=sweep,
        chosen=chosen.name,
        sensitivity=found.products,
        operators=found.operators,
        layers=found.layers,
        sensitivity_texts=len(few.ids) if found.products else 0,
        steps=steps,
    )
    return quantised, report


def exclude_until_accurate(
    graph: onnx.ModelProto, ranges: Ranges, sensitivity: dict[str, float], judge: Judge
) -> tuple[onnx.ModelProto, list[Setting]]:
    """Leave the most sensitive product out, and so on, until the gate holds. Raises `Failure`."""
    kept = sorted(sensitivity, key=sensitivity.__getitem__)  # the least sensitive first
    steps: list[Setting] = []
    while len(kept) > 1:
        excluded = kept.pop()
        quantised = insert_qdq(graph, ranges, kept)
        steps.append(judge.judge(quantised, f"without {excluded}"))
        if steps[-1].passes:
            return quantised, steps
    raise Failure(
        "int8 loses too much accuracy on the validation part, even with one product quantised; "
        "use --precision bf16 or fp32, or more --calibration-rows"
    )


def insert_qdq(graph: onnx.ModelProto, ranges: Ranges, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `graph` with the MatMul nodes of these exact names in int8."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    # Fused operators have no type inference, and the quantizer skips a tensor whose type it does not know.
    copy.graph.value_info.extend(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None) for tensor in sorted(ranges))
    limits = {tensor: (np.float32(low), np.float32(high)) for tensor, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=list(names),
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    quantizer.quantize_model()
    quantised: onnx.ModelProto = quantizer.model.model
    restore_inputs(quantised, names)
    check_quantised(quantised, names)
    return quantised


def restore_inputs(graph: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give the tensors themselves back to all nodes but the named products, in place.

    The quantizer puts every reader of a tensor behind its Q/DQ. Then the residuals would be rounded too, which made a seventh
    of MiniLM's int8 error (mean of the logits, 400 held-out docstrings) and nothing faster.
    """
    quantised = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    exact = {
        node.output[0]: quantised[node.input[0]]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised
    }
    for node in graph.graph.node:
        if node.name not in names:
            for place, tensor in enumerate(node.input):
                node.input[place] = exact.get(tensor, tensor)


def check_quantised(graph: onnx.ModelProto, names: Sequence[str]) -> None:
    """Raise `Failure` unless both factors of every named product are int8: the quantizer skips what it does not understand."""
    dequantised = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    done = {node.name for node in graph.graph.node if set(node.input) <= dequantised and node.op_type == "MatMul"}
    if missing := sorted(set(names) - done):
        raise Failure(f"the quantizer left {len(missing)} products in fp32, the first is {missing[0]}; report this as a bug")


def make_judge(graph: onnx.ModelProto, encoded: Encoded, pad_token_id: int) -> Judge:
    """Answer the texts with the fp32 graph."""
    batches = text_batches(encoded, pad_token_id)
    classes = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return Judge(batches, run_graph(graph, batches, (len(encoded.ids), classes)), encoded.labels)


def run_graph(graph: onnx.ModelProto, batches: Sequence[TextBatch], shape: Any) -> Float32:
    """Logits [R, C] by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: npt.NDArray[np.float32] = np.empty(shape, np.float32)
    for rows, inputs in batches:
        logits[rows] = session.run([LOGITS], feed_of(inputs))[0]
    return logits
