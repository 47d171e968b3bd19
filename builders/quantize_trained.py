"""int8 of a checkpoint whose weights were trained for it (`training.quantize_aware`): its own ranges, nothing to choose.

The Q/DQ nodes are those of `builders.quantize`, around every matrix product of the encoder. They are judged beside the fp32
model that the training began with, whose logits the checkpoint brings, as it brings those of static int8.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from tokenizers import Tokenizer

from builders.accuracy import compare_accuracy
from builders.onnx_export import build_onnx
from builders.parity import text_batches
from builders.quantization_report import TrainedReport, judge_logits
from builders.quantize import insert_qdq, run_graph
from builders.ranges import product_inputs
from contract.command import Failure, UsageError
from training.batches import encode
from training.bert import BertForSequenceClassification
from training.ranges import Range
from training.trained_int8 import TrainedInt8, Validation


def quantise_trained(
    model: BertForSequenceClassification, tokenizer: Tokenizer, trained: TrainedInt8, validation: Validation
) -> tuple[onnx.ModelProto, TrainedReport]:
    """The int8 graph of `model`, and what the training changed.

    Raises:
        UsageError: ranges of another model.
        Failure: the gate does not hold on the validation part.
    """
    graph = build_onnx(model, joint_attention=False)
    quantised = insert_qdq(graph, tensor_ranges(graph, trained.ranges), list(product_inputs(graph)))
    batches = text_batches(encode(tokenizer, validation.texts, []), model.config.pad_token_id)
    fp32, static = (np.array(logits, np.float32) for logits in (validation.fp32, validation.static))
    ours = run_graph(quantised, batches, fp32.shape)
    report = TrainedReport(
        trained=trained,
        validation_texts=len(validation.texts),
        static=judge_logits("static, before the training", static, fp32, validation.labels),
        quantised=judge_logits("trained", ours, fp32, validation.labels),
        change=compare_accuracy(ours, static, validation.labels) if validation.labels else None,
    )
    if not report.quantised.passes:
        raise Failure(
            f"int8 loses too much on the validation part, trained for it as the weights are; train on with more --epochs, "
            f"or use --precision bf16 or fp32\n{report.markdown()}"
        )
    return quantised, report


def tensor_ranges(graph: onnx.ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of layers, by path, as those of the tensors that they read. Raises UsageError where the two do not fit."""
    found: dict[str, Range] = {}
    products = {node.removesuffix(".matmul"): tensor for node, tensor in product_inputs(graph).items()}
    if different := sorted(set(products) ^ set(ranges)):
        raise UsageError(f"the trained ranges are not those of this model: {different[0]} is in one of the two alone")
    for path, tensor in products.items():
        if found.setdefault(tensor, ranges[path]) != ranges[path]:
            raise UsageError(f"the trained ranges are not those of this model: {path} shares its input and not its range")
    return found
