"""What the engines are measured against: the same weights as most people serve them, on padded batches.

transformers in PyTorch, eager, fp32 and bf16; ONNX Runtime on PyTorch's own export, fp32 and dynamically quantised; OpenVINO on
that export. Defaults everywhere, but that ONNX Runtime's idle threads do not spin: they would take the cores from the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from builders.parity import Float32, Int32
from builders.served import engine_module
from builders.timing import Rows, Run
from contract.tensors import ATTENTION_MASK, INPUT_IDS

Call = Callable[[Int32, Int32], Float32]
"""(input_ids [B, T], attention_mask [B, T]) -> logits [B, C]."""


def pad_rows(rows: Rows) -> tuple[Int32, Int32]:
    """Rows -> (input_ids, attention_mask), padded to the longest: what a tokenizer with padding=True hands over."""
    longest = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return ids, mask


def padded(call: Call) -> Run:
    """The usual way from rows to logits: one padded batch."""
    return lambda rows: list(call(*pad_rows(rows)))


def load_transformers(folder: Path) -> Any:
    """transformers' model of a merged checkpoint, in eval mode, with its default attention."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.BertForSequenceClassification.from_pretrained(folder).eval()


def torch_rival(model: Any) -> Call:
    """Eager PyTorch."""

    @torch.inference_mode()
    def call(ids: Int32, mask: Int32) -> Float32:
        logits: Float32 = model(torch.from_numpy(ids), torch.from_numpy(mask)).logits.float().numpy()
        return logits

    return call


class _Logits(torch.nn.Module):
    """The logits alone, of token ids and mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids, attention_mask).logits


def export_plainly(model: Any, path: Path) -> None:
    """PyTorch's own (TorchScript) export of transformers' model, any batch and length, to `path`."""
    example = (torch.ones(3, 9, dtype=torch.int32), torch.ones(3, 9, dtype=torch.int32))
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of a third party's export, about which nobody here can do anything
        torch.onnx.export(
            _Logits(model).eval(),
            example,
            path,
            input_names=[INPUT_IDS, ATTENTION_MASK],
            output_names=["logits"],
            dynamic_axes={INPUT_IDS: axes, ATTENTION_MASK: axes},
            opset_version=17,
            dynamo=False,  # the newer exporter needs a package more
        )


def quantise_dynamically(path: Path, target: Path) -> None:
    """onnxruntime's dynamic int8 with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(path, target)


def onnxruntime_rival(path: Path) -> Call:
    """ONNX Runtime on any ONNX file with these two inputs."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(ids: Int32, mask: Int32) -> Float32:
        logits: Float32 = session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
        return logits

    return call


def openvino_rival(path: Path) -> Call:
    """OpenVINO on an ONNX file; its own default computes in bf16 where the processor has it."""
    compiled = engine_module().openvino_core().compile_model(path, "CPU")
    return lambda ids, mask: compiled({INPUT_IDS: ids, ATTENTION_MASK: mask})[0]


def make_rivals(checkpoint: Path, scratch: Path) -> dict[str, Run]:
    """Every rival by name, on the weights of a merged checkpoint; files go to `scratch`."""
    plain, quantised = scratch / "plain.onnx", scratch / "plain-int8.onnx"
    export_plainly(load_transformers(checkpoint), plain)
    quantise_dynamically(plain, quantised)
    calls = {
        "transformers fp32": torch_rival(load_transformers(checkpoint)),
        "transformers bf16": torch_rival(load_transformers(checkpoint).to(torch.bfloat16)),
        "plain onnxruntime fp32": onnxruntime_rival(plain),
        "plain onnxruntime int8": onnxruntime_rival(quantised),
        "plain openvino": openvino_rival(plain),
    }
    return {name: padded(call) for name, call in calls.items()}
