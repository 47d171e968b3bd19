"""The engines that can be built for a CPU: what each needs of the machine, and how it is written.

How an engine is opened is written down once, in `bert_engine/1/model.py`, which reads the `engine.json` that is written here.
TensorRT's engines are written by `builders.tensorrt_release`.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from builders.accuracy import Accuracy
from builders.engine_record import EngineRecord
from builders.hardware import cpu_flags, describe_cpu, has_bf16
from builders.onnx_export import build_onnx
from builders.parity import BOUNDS, Parity, Reference, failures_of, prove
from builders.served import batch_runner, engine_module, open_served
from contract.command import Failure, UsageError
from contract.files import write_bytes, write_json
from contract.tensors import ATTENTION_MASK, FEATURES, INPUT_IDS
from training.bert import BertForSequenceClassification

EngineName = Literal["onnxruntime", "openvino", "torch", "tensorrt", "auto"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]

OPENVINO_LENGTH_STEP = 8
"""Tokens by which OpenVINO's calls grow. It compiles kernels for each new shape, in 15 ms, and keeps them, 2 MiB. What is
filled up is padding, and counted as such."""
LANES = 2
"""Calls that OpenVINO computes side by side, each on its share of the cores, in less than fp32. In fp32 that gains 5 %, and
takes more copies of the weights."""
LONGEST_BATCH = 1024  # rows of a call that the exported torch program is told to expect at most


@dataclass(frozen=True)
class Source:
    """What an engine is written from."""

    model: BertForSequenceClassification
    int8_graph: Callable[[], onnx.ModelProto]
    """The graph with Q/DQ nodes (`builders.quantize`); called when an int8 engine is written. Raises UsageError."""


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One engine in one precision."""

    engine: str
    precision: str
    write: Callable[[Path, Source], dict[str, Any]]
    """Writes the engine's files into a folder and returns what `engine.json` says beyond the common keys."""
    needs_bf16: bool = False
    """Whether it is refused on a processor that does not compute bf16 itself."""

    @property
    def title(self) -> str:
        """As people read it, `onnxruntime int8`."""
        return f"{self.engine} {self.precision}"

    def lacking(self, flags: frozenset[str]) -> str | None:
        """Why a machine with these CPU flags cannot run it; None where it can."""
        if self.needs_bf16 and not has_bf16(flags):
            return f"{self.title} needs a processor with avx512_bf16 or amx_bf16, which this one has not"
        return None


def _write_onnxruntime_fp32(folder: Path, source: Source) -> dict[str, Any]:
    write_bytes(folder / "model.onnx", build_onnx(source.model).SerializeToString())
    return {}


def _write_onnxruntime_int8(folder: Path, source: Source) -> dict[str, Any]:
    write_bytes(folder / "model.onnx", source.int8_graph().SerializeToString())
    return {}


def _write_openvino(folder: Path, graph: onnx.ModelProto, computes: str, *, lanes: int = LANES) -> dict[str, Any]:
    """OpenVINO has one operator for the attention over Q, K and V, and none for that with their products."""
    import openvino

    model = engine_module().openvino_core().read_model(graph.SerializeToString())
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return {"inference_precision": computes, "length_step": OPENVINO_LENGTH_STEP, "lanes": lanes}


def _write_openvino_fp32(folder: Path, source: Source) -> dict[str, Any]:
    return _write_openvino(folder, build_onnx(source.model, joint_attention=False), "f32", lanes=1)


def _write_openvino_bf16(folder: Path, source: Source) -> dict[str, Any]:
    return _write_openvino(folder, build_onnx(source.model, joint_attention=False), "bf16")


def _write_openvino_int8(folder: Path, source: Source) -> dict[str, Any]:
    """What is not quantised is computed in bf16 where the processor has it."""
    return _write_openvino(folder, source.int8_graph(), "bf16" if has_bf16(cpu_flags()) else "f32")


def _write_torch(folder: Path, source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """Export for any batch and length; token ids in, fp32 logits out, whatever the weights are in."""
    model = source.model if dtype == torch.float32 else _copy_as(source.model, dtype)
    example = {name: torch.ones(3, 9, dtype=torch.int32) for name in (INPUT_IDS, ATTENTION_MASK)}
    batch = torch.export.Dim("batch", min=1, max=LONGEST_BATCH)
    tokens = torch.export.Dim("tokens", min=1, max=model.config.max_position_embeddings)
    shapes: dict[str, dict[int, Any]] = {name: {0: batch, 1: tokens} for name in example}
    if features := model.config.num_features:
        example[FEATURES], shapes[FEATURES] = torch.ones(3, features), {0: batch}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
        program = torch.export.export(model, (), example, dynamic_shapes=shapes)
        torch.export.save(program, folder / "model.pt2")
    return {}


def _copy_as(model: BertForSequenceClassification, dtype: torch.dtype) -> BertForSequenceClassification:
    copy = BertForSequenceClassification(model.config).eval()
    copy.load_state_dict(model.state_dict())
    copy = copy.to(dtype)
    if copy.tabular is not None and model.tabular is not None:  # raw numbers may be large beside their deviation
        copy.tabular.mean, copy.tabular.std = model.tabular.mean, model.tabular.std
    return copy


def _write_torch_fp32(folder: Path, source: Source) -> dict[str, Any]:
    return _write_torch(folder, source, torch.float32)


def _write_torch_bf16(folder: Path, source: Source) -> dict[str, Any]:
    return _write_torch(folder, source, torch.bfloat16)


KINDS = (
    EngineKind(engine="onnxruntime", precision="fp32", write=_write_onnxruntime_fp32),
    EngineKind(engine="onnxruntime", precision="int8", write=_write_onnxruntime_int8),
    EngineKind(engine="openvino", precision="fp32", write=_write_openvino_fp32),
    EngineKind(engine="openvino", precision="bf16", write=_write_openvino_bf16, needs_bf16=True),
    EngineKind(engine="openvino", precision="int8", write=_write_openvino_int8),
    EngineKind(engine="torch", precision="fp32", write=_write_torch_fp32),
    EngineKind(engine="torch", precision="bf16", write=_write_torch_bf16, needs_bf16=True),
)


def find_kind(engine: str, precision: str, flags: frozenset[str]) -> EngineKind:
    """The kind that was asked for.

    Raises:
        UsageError: there is none of that precision, or the machine cannot run it; the message says what is allowed.
    """
    of_engine = [kind for kind in KINDS if kind.engine == engine]
    runnable = [kind.precision for kind in of_engine if kind.lacking(flags) is None]
    for kind in of_engine:
        if kind.precision == precision:
            if reason := kind.lacking(flags):
                raise UsageError(f"--precision {precision}: {reason}; on this machine {engine} takes {', '.join(runnable)}")
            return kind
    raise UsageError(f"--engine {engine} has no --precision {precision}; it takes {', '.join(runnable)}")


def runnable_kinds(precision: str | None, flags: frozenset[str]) -> list[EngineKind]:
    """What `auto` tries: every kind that this machine can run, of one precision where one is named. Raises UsageError."""
    found = [kind for kind in KINDS if kind.lacking(flags) is None and precision in {None, kind.precision}]
    if not found:
        allowed = sorted({kind.precision for kind in KINDS if kind.lacking(flags) is None})
        raise UsageError(f"--engine auto has no --precision {precision} for this machine; it takes {', '.join(allowed)}")
    return found


def write_files(folder: Path, kind: EngineKind, source: Source) -> None:
    """Write the engine's files and the `engine.json` by which `bert_engine/1/model.py` opens them."""
    config = source.model.config
    common = {"kind": kind.engine, "precision": kind.precision, "threads": 0}
    limits = {"vocab_size": config.vocab_size, "positions": config.max_position_embeddings, "features": config.num_features}
    write_json(folder / "engine.json", common | limits | kind.write(folder, source))


def write_cpu_engine(folder: Path, kind: EngineKind, source: Source, reference: Reference) -> EngineRecord:
    """Write an engine into `folder`, open that very engine as it is served, and prove it.

    Raises:
        UsageError: it cannot be written, as int8 without calibration texts.
        Failure: it is not the checkpoint's equal within the bounds of its precision, or loses accuracy.
    """
    write_files(folder, kind, source)
    record, failures = prove_files(folder, kind, reference)
    if failures:
        raise Failure("the engine does not equal its checkpoint; no release was written:\n  " + "\n  ".join(failures))
    return record


def prove_files(folder: Path, kind: EngineKind, reference: Reference) -> tuple[EngineRecord, Sequence[str]]:
    """Open the engine in `folder` as it is served: what the manifest says of it, and what keeps it out of a release."""
    parity, accuracy = prove(batch_runner(open_served(folder)), reference, BOUNDS[kind.precision], title=kind.title)
    return record_of(kind, parity, accuracy), failures_of(parity, accuracy)


def record_of(kind: EngineKind, parity: Parity, accuracy: Accuracy | None) -> EngineRecord:
    """What goes into the manifest."""
    return EngineRecord(
        kind=kind.engine,
        precision=kind.precision,
        runtime={"name": kind.engine, "version": version(kind.engine)},
        parity=dataclasses.asdict(parity),
        accuracy=dataclasses.asdict(accuracy) if accuracy else {},
        hardware=describe_cpu(),
    )
