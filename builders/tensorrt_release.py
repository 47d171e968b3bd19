"""The TensorRT engine of a release: `model.plan`, proved as far as this machine can, and what it says about itself.

    python -m builders.build build/merged --engine tensorrt --precision fp16 --output build/release

calls `write_engine`. On a machine without a GPU the graph is proved, on the CPU and rounded as a GPU rounds; with a GPU the plan
itself is opened, inspected and run against the checkpoint. `engine.json` says which of the two it was.

    model.plan      what Triton loads
    graph.onnx      the graph without its weights, which `builders.refit` compares a later checkpoint with
    engine.json     kind, precision, layout, TensorRT, GPU, profiles, proof: what `builders.check` reads in a deployed repository
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from builders.accuracy import Accuracy
from builders.engine_record import EngineRecord
from builders.gpu import describe_gpu
from builders.graph_census import check_graph, check_precision, skeleton
from builders.graph_runner import graph_engine
from builders.graph_writer import Typing
from builders.input_ranges import read_ranges
from builders.packed_graph import packed_onnx
from builders.parity import BOUNDS, Parity, Reference, failures_of, make_reference, prove
from builders.plan_proof import PlanSize, check_inspected, check_network, check_size, inspected_types, proof_record
from builders.plan_runner import plan_engine
from builders.plan_settings import PlanSettings, Profile, TensorRTModule, packed_profile, padded_profiles
from builders.repository import CONTAINER_VARIABLE
from builders.standard_graph import EXTRA_OUTPUTS, standard_onnx
from builders.trt_engine import BuiltPlan, build_plan, inspect_engine, load_tensorrt, open_plan
from contract.command import Failure, UsageError
from contract.files import read_json, write_bytes, write_json
from contract.tensors import MAX_BATCH_SIZE
from training.batches import encode
from training.bert import BertForSequenceClassification
from training.checkpoint import Checkpoint, heldout_rows

PLAN_FILE = "model.plan"
GRAPH_FILE = "graph.onnx"
ENGINE_JSON = "engine.json"
LAYOUTS = ("padded", "packed")


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions(PlanSettings):
    """What a TensorRT engine is built with, beside precision and layout."""

    module: TensorRTModule = "tensorrt"
    """tensorrt, on the GPU that will serve; or tensorrt_rtx, which needs no GPU and whose plans Triton does not load."""
    lengths: Path | None = None
    """Length plan of builders.plan_lengths: one profile a length. Without it one profile holds every length."""
    ranges: Path | None = None
    """Input ranges of builders.input_ranges; int8 and fp8 need them."""
    best_batch: int = 8
    """Batch that profiles are best at, texts; a length plan brings its own."""
    packed_tokens: int = 4096
    """Tokens in one packed batch: attention's mask grows with their square."""
    extra_outputs: tuple[str, ...] = ()
    """Outputs beside the logits: probabilities, label_index."""
    proof_texts: int = 256
    """Held-out texts on which the engine is compared with the checkpoint, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.best_batch <= MAX_BATCH_SIZE:
            raise UsageError(f"--best-batch is {self.best_batch}; it must be 1 to {MAX_BATCH_SIZE}")
        if self.packed_tokens < 1:
            raise UsageError(f"--packed-tokens is {self.packed_tokens}; it must be at least 1")
        if self.proof_texts < 1:
            raise UsageError(f"--proof-texts is {self.proof_texts}; it must be at least 1")
        unknown = [name for name in self.extra_outputs if name not in EXTRA_OUTPUTS]
        if unknown:
            raise UsageError(f"--extra-outputs has {unknown[0]!r}; known are {', '.join(EXTRA_OUTPUTS)}")


def write_engine(
    folder: Path, checkpoint: Checkpoint, *, precision: str, layout: str, options: TensorRTOptions
) -> EngineRecord:
    """Build the engine of a checkpoint into `folder` and prove it.

    Raises:
        UsageError: TensorRT is absent or too old, or the options do not fit it, the precision or the layout.
        Failure: TensorRT cannot build it, or the engine is not what was asked for, or not the checkpoint's equal.
    """
    trt = load_tensorrt(options.module)
    typing = make_typing(precision, options)
    graph = write_graph(checkpoint.model, typing, layout, options.extra_outputs)
    census = check_graph(graph)
    check_precision(census, precision)
    reference = make_proof(checkpoint, options.proof_texts, layout)
    parity, accuracy = prove_graph(checkpoint.model, graph, reference, precision, layout)
    profiles = make_profiles(layout, checkpoint.max_length, options)
    built = build_plan(trt, graph, profiles, options)
    check_network(built.network, census, precision)
    size = PlanSize(len(built.data), census.weight_bytes, census.parameters, len(profiles))
    check_size(size, precision)
    gpu, proved_on, inspected = describe_gpu(), "its graph on the CPU, rounded as a GPU rounds", None
    if gpu:
        parity, accuracy, inspected = prove_plan(trt, built, profiles, reference, precision, options)
        proved_on = f"the plan on {gpu['gpu']}"
    record = EngineRecord(
        kind="tensorrt",
        precision=precision,
        layout=layout,
        runtime={"name": options.module, "version": trt.__version__},
        parity=dataclasses.asdict(parity) | {"proved_on": proved_on},
        accuracy=dataclasses.asdict(accuracy) if accuracy else {},
        hardware=gpu | {"compute_capabilities": list(options.compute_capabilities)},
        profiles=[profile.as_json() for profile in profiles],
    )
    write_files(folder, built.data, graph, record, options, proof_record(size, built.network, inspected))
    return record


def make_typing(precision: str, options: TensorRTOptions) -> Typing:
    """The types of the graph. Raises UsageError for an unknown precision, ranges that are missing, or not wanted."""
    eight = precision in {"int8", "fp8"}
    if eight and options.ranges is None:
        raise UsageError(f"--precision {precision} needs --ranges; python -m builders.input_ranges measures them")
    if eight and options.refittable:
        raise UsageError(f"a {precision} plan cannot be refitted, its scales belong to its weights; leave --refittable out")
    ranges = read_ranges(options.ranges) if options.ranges else {}
    return Typing(precision, ranges)  # type: ignore[arg-type]  # Typing names what it does not know


def write_graph(model: BertForSequenceClassification, typing: Typing, layout: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph of a layout. Raises UsageError for an unknown one."""
    if layout not in LAYOUTS:
        raise UsageError(f"--layout is {layout!r}; known are {', '.join(LAYOUTS)}")
    return (packed_onnx if layout == "packed" else standard_onnx)(model, typing, outputs=outputs)


def make_profiles(layout: str, max_length: int, options: TensorRTOptions) -> list[Profile]:
    """The profiles of a layout, for texts of up to `max_length` tokens. Raises UsageError for a plan of other lengths."""
    if layout == "packed":
        if options.lengths:
            raise UsageError("--lengths are those that texts are padded to, and --layout packed pads none; leave it out")
        tokens = options.best_batch * max_length
        best = min(tokens, options.packed_tokens)
        limits = {"best_batch": options.best_batch, "max_tokens": options.packed_tokens}
        return [packed_profile(max_length, best_tokens=best, **limits)]
    lengths, best_batch = [max_length], options.best_batch
    if options.lengths:
        lengths, best_batch = read_lengths(options.lengths, max_length)
    return padded_profiles(lengths, best_batch=best_batch)


def read_lengths(path: Path, max_length: int) -> tuple[list[int], int]:
    """(lengths, best batch) of a length plan. Raises UsageError when it is none, or ends before `max_length`."""
    value = read_json(path)
    try:
        lengths, best_batch = [int(length) for length in value["lengths"]], int(value["best_batch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no length plan ({error!r}); python -m builders.plan_lengths writes one") from error
    if not lengths or lengths[-1] != max_length:
        raise UsageError(f"{path} reaches to {lengths[-1:]} tokens, the checkpoint reads {max_length}; plan again")
    return lengths, best_batch


def make_proof(checkpoint: Checkpoint, rows: int, layout: str) -> Reference:
    """The checkpoint's answers on held-out rows and made-up batches; the packed layout has no rows without a token."""
    found = heldout_rows(checkpoint.folder, rows)
    labels = [checkpoint.labels.index(row["label"]) for row in found]
    reference = make_reference(checkpoint.model, encode(checkpoint.tokenizer, [row["text"] for row in found], labels))
    if layout != "packed":
        return reference
    kept = [(mask.any(axis=1), ids, mask, logits) for ids, mask, logits in reference.made_up]
    return dataclasses.replace(reference, made_up=[(ids[real], mask[real], logits[real]) for real, ids, mask, logits in kept])


def prove_graph(
    model: BertForSequenceClassification, graph: onnx.ModelProto, reference: Reference, precision: str, layout: str
) -> tuple[Parity, Accuracy | None]:
    """Prove the graph in FP32, where it must equal the checkpoint, then as it is typed. Raises Failure."""
    if precision != "fp32":
        exact = graph_engine(write_graph(model, Typing(), layout, ()))
        _refuse("the graph in FP32", prove(exact, reference, BOUNDS["fp32"], title="graph in fp32"))
    proof = prove(graph_engine(graph), reference, BOUNDS[precision], title=f"graph in {precision}")
    return _refuse(f"the graph in {precision}", proof)


def prove_plan(
    trt: Any, built: BuiltPlan, profiles: Sequence[Profile], reference: Reference, precision: str, options: TensorRTOptions
) -> tuple[Parity, Accuracy | None, dict[str, int]]:
    """Open, inspect and run the plan on this machine's GPU. Raises Failure."""
    engine = open_plan(trt, built.data, version_compatible=options.version_compatible)
    inspected = dict(inspected_types(inspect_engine(trt, engine)))
    check_inspected(inspected, precision)
    within = within_profiles(reference, profiles)
    proof = prove(plan_engine(engine, profiles), within, BOUNDS[precision], title="plan")
    return *_refuse("the plan", proof), inspected


def within_profiles(reference: Reference, profiles: Sequence[Profile]) -> Reference:
    """The made-up batches that the profiles hold; texts are truncated at their longest length anyway."""
    largest = {name: shapes[2] for name, shapes in profiles[-1].shapes.items()}
    if len(next(iter(largest.values()))) == 2:
        (most, longest), *_ = largest.values()
        kept = [made for made in reference.made_up if made[0].shape[0] <= most and made[0].shape[1] <= longest]
    else:
        tokens, offsets = (shape[0] for shape in largest.values())
        kept = [made for made in reference.made_up if made[1].sum() <= tokens and len(made[1]) < offsets]
    return dataclasses.replace(reference, made_up=kept)


def _refuse(what: str, proof: tuple[Parity, Accuracy | None]) -> tuple[Parity, Accuracy | None]:
    if failures := failures_of(*proof):
        raise Failure(f"{what} does not equal its checkpoint; no release was written:\n  " + "\n  ".join(failures))
    return proof


def write_files(
    folder: Path, plan: bytes, graph: onnx.ModelProto, record: EngineRecord, options: TensorRTOptions, proof: dict[str, Any]
) -> None:
    """Write the three files; see the module docstring."""
    write_bytes(folder / PLAN_FILE, plan)
    write_bytes(folder / GRAPH_FILE, skeleton(graph).SerializeToString())
    facts = {key: value for key, value in dataclasses.asdict(record).items() if key not in {"parity", "accuracy"}}
    compatible = {"version_compatible": options.version_compatible, "hardware_compatibility": options.hardware_compatibility}
    built = {"container": os.environ.get(CONTAINER_VARIABLE), "refittable": options.refittable, **compatible}
    write_json(folder / ENGINE_JSON, facts | built | {"outputs": list(options.extra_outputs), "proof": proof})
