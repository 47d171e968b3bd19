"""The TensorRT engine of a release: `model.plan`, proved as far as this machine can, and what it says about itself.

    python -m builders.build build/merged --engine tensorrt --precision fp16 --output build/release

calls `write_engine`. On a machine without a GPU the graph is proved, on the CPU and rounded as a GPU rounds; with a GPU the
plan itself is opened, inspected and run against the checkpoint. The manifest says which of the two it was.

The files are those of `builders.plan_files`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from builders.accuracy import Accuracy
from builders.calibration import Calibration, read_calibration
from builders.engine_record import EngineRecord
from builders.gpu import describe_gpu
from builders.graph_census import census, check_graph, check_precision
from builders.graph_runner import graph_engine, pack
from builders.graph_writer import Typing, skeleton
from builders.input_ranges import choose_ranges, read_ranges
from builders.packed_graph import packed_onnx
from builders.parity import BOUNDS, Engine, Inputs, Parity, Reference, failures_of, feed_of, make_reference, prove
from builders.plan_files import ENGINE_JSON, GRAPH_FILE, PLAN_FILE, check_refittable, check_weights_fit, read_engine_json
from builders.plan_proof import PlanSize, check_inspected, check_network, check_size, proof_record
from builders.plan_runner import find_profile, plan_engine
from builders.plan_settings import PlanSettings, Profile, TensorRTModule, packed_profile, padded_profiles, read_lengths
from builders.repository import CONTAINER_VARIABLE
from builders.standard_graph import EXTRA_OUTPUTS, standard_onnx
from builders.trt_engine import (
    build_plan,
    check_settings,
    inspect_engine,
    load_tensorrt,
    open_plan,
    refit_plan,
    stays_refittable,
)
from contract.command import Failure, UsageError
from contract.files import write_bytes, write_json
from contract.tensors import MAX_BATCH_SIZE
from training.bert import BertForSequenceClassification
from training.checkpoint import Checkpoint, heldout_rows

LAYOUTS = ("padded", "packed")
PROOF_ROWS = CALIBRATION_ROWS = 256
EIGHT_BITS = ("int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions(PlanSettings):
    """What a TensorRT engine is built with, beside precision and layout."""

    module: TensorRTModule = "tensorrt"
    """tensorrt, on the GPU that will serve; or tensorrt_rtx, which needs no GPU and whose plans Triton does not load."""
    lengths: Path | None = None
    """Length plan of builders.plan_lengths: one profile a length. Without it one profile holds every length."""
    ranges: Path | None = None
    """Input ranges of int8 and fp8, a file of builders.input_ranges; without it they are observed on the training texts."""
    best_batch: int = 8
    """Batch that profiles are best at, texts; a length plan brings its own."""
    packed_tokens: int = 4096
    """Tokens in one packed batch: attention's mask grows with their square."""
    refit_from: Path | None = None
    """Engine folder of a refittable plan that is given this checkpoint's weights instead of being built again."""
    extra_outputs: tuple[str, ...] = ()
    """Outputs beside the logits: probabilities, label_index."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.best_batch <= MAX_BATCH_SIZE:
            raise UsageError(f"--tensorrt.best-batch is {self.best_batch}; it must be 1 to {MAX_BATCH_SIZE}")
        if self.packed_tokens < 1:
            raise UsageError(f"--tensorrt.packed-tokens is {self.packed_tokens}; it must be at least 1")
        unknown = [name for name in self.extra_outputs if name not in EXTRA_OUTPUTS]
        if unknown:
            raise UsageError(f"--tensorrt.extra-outputs has {unknown[0]!r}; known are {', '.join(EXTRA_OUTPUTS)}")


def write_engine(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    precision: str,
    layout: str,
    options: TensorRTOptions,
    reference: Reference | None = None,
    calibration: Callable[[], Calibration] | None = None,
) -> EngineRecord:
    """Build the engine of a merged checkpoint into an existing folder and prove it.

    Args:
        reference: the checkpoint's answers; computed on 256 held-out rows when left out.
        calibration: gives the texts on which int8 and fp8 are calibrated; those of training when left out.

    Raises:
        UsageError: TensorRT is absent or too old, or the options do not fit it, the precision or the layout.
        Failure: TensorRT cannot build it, or not prove it here, or the engine is not what was asked for, or not the
            checkpoint's equal.
    """
    trt = load_tensorrt(options.module)
    profiles = make_profiles(layout, checkpoint.max_length, options, features=checkpoint.model.config.num_features)
    check_settings(trt, options, profiles=len(profiles))
    gpu = find_gpu(options)
    if options.refit_from:
        check_alike(trt, options.refit_from, profiles, precision, options)
    typing = make_typing(checkpoint, precision, options, calibration)
    graph = write_graph(checkpoint.model, typing, layout, options.extra_outputs)
    counted = check_graph(graph)
    check_precision(counted, precision)
    proof = Proof(reference or make_proof(checkpoint), precision, layout)
    proved = proof.of_graph(checkpoint.model, graph)
    plan, network = make_plan(trt, graph, profiles, precision, options)
    size = PlanSize(len(plan), counted.weight_bytes, counted.parameters, len(profiles))
    check_size(size, precision)
    proved_on, inspected = "its graph on the CPU, rounded as a GPU rounds", None
    if gpu:
        engine = open_plan(trt, plan, version_compatible=options.version_compatible)
        inspected = check_inspected(inspect_engine(trt, engine), counted, precision, profiles=len(profiles))
        proved, proved_on = proof.of_plan(engine, profiles), f"the plan on {gpu['gpu']}"
    record = EngineRecord(
        kind="tensorrt",
        precision=precision,
        layout=layout,
        runtime={"name": options.module, "version": trt.__version__},
        parity=dataclasses.asdict(proved[0]) | {"proved_on": proved_on},
        accuracy=dataclasses.asdict(proved[1]) if proved[1] else {},
        hardware=gpu | {"compute_capabilities": list(options.compute_capabilities)},
        profiles=[profile.as_json() for profile in profiles],
    )
    write_bytes(folder / PLAN_FILE, plan)
    write_bytes(folder / GRAPH_FILE, skeleton(graph).SerializeToString())
    refittable = stays_refittable(trt) if options.refit_from else options.refittable
    write_json(folder / ENGINE_JSON, engine_json(record, options, refittable, proof_record(size, network, inspected)))
    return record


def find_gpu(options: TensorRTOptions) -> dict[str, str]:
    """The GPU that a plan is built for and proved on; empty where it is built for others, or TensorRT-RTX has none here.

    Raises:
        Failure: TensorRT, which builds on a GPU alone, and no GPU that nvidia-smi names: no plan could be proved.
    """
    gpu = {} if options.compute_capabilities else describe_gpu()
    if options.module == "tensorrt" and not gpu:
        raise Failure(
            "TensorRT builds on a GPU that nvidia-smi does not name here, so the plan could not be proved; "
            "make nvidia-smi work (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        )
    return gpu


def make_plan(
    trt: Any, graph: onnx.ModelProto, profiles: Sequence[Profile], precision: str, options: TensorRTOptions
) -> tuple[bytes, Counter[tuple[str, str]]]:
    """A plan built, or an old one refitted; and the census of the network, empty where none was built."""
    if options.refit_from:
        check_weights_fit(options.refit_from, graph)
        plan = (options.refit_from / PLAN_FILE).read_bytes()
        return refit_plan(trt, plan, graph, version_compatible=options.version_compatible), Counter()
    built = build_plan(trt, graph, profiles, options)
    check_network(built.network, census(graph), precision)
    return built.data, built.network


def check_alike(trt: Any, folder: Path, profiles: Sequence[Profile], precision: str, options: TensorRTOptions) -> None:
    """Raise UsageError unless the plan in `folder` takes weights and was built with what is asked for, which then stays."""
    check_refittable(folder, trt)
    facts = read_engine_json(folder)
    if facts["precision"] != precision:
        raise UsageError(f"the plan of {folder} is in {facts['precision']}, asked for is {precision}; build a new one")
    if facts["profiles"] != [profile.as_json() for profile in profiles]:
        raise UsageError(f"the plan of {folder} has other profiles than are asked for; build a new one")
    for name in ("version_compatible", "hardware_compatibility"):
        asked = getattr(options, name)
        if facts.get(name) != asked:
            flag = f"--tensorrt.{name.replace('_', '-')}"
            raise UsageError(f"the plan of {folder} was built with {flag} {facts.get(name)}, not {asked}; build a new one")


def make_typing(
    checkpoint: Checkpoint, precision: str, options: TensorRTOptions, calibration: Callable[[], Calibration] | None = None
) -> Typing:
    """The types of the graph, ranges observed where they are needed. Raises UsageError for what does not fit together."""
    if precision in EIGHT_BITS:
        if options.refittable:
            raise UsageError(
                f"a {precision} plan cannot be refitted, its scales belong to its weights; leave --tensorrt.refittable out"
            )
        if options.ranges:
            return Typing(precision, read_ranges(options.ranges))
        texts = calibration() if calibration else read_calibration(checkpoint, None, rows=CALIBRATION_ROWS)
        return Typing(precision, choose_ranges(checkpoint, precision, texts).ranges)
    return Typing(precision, read_ranges(options.ranges) if options.ranges else {})


def write_graph(model: BertForSequenceClassification, typing: Typing, layout: str, outputs: Sequence[str]) -> onnx.ModelProto:
    """The graph of a layout. Raises UsageError for an unknown one, and for a packed one of a model with features."""
    if layout == "packed" and model.config.num_features:
        raise UsageError("--layout packed reads text alone, and this checkpoint numbers beside it; use --layout padded")
    if layout not in LAYOUTS:
        raise UsageError(f"--layout is {layout!r}; known are {', '.join(LAYOUTS)}")
    return (packed_onnx if layout == "packed" else standard_onnx)(model, typing, outputs=outputs)


def make_profiles(layout: str, max_length: int, options: TensorRTOptions, *, features: int = 0) -> list[Profile]:
    """The profiles of a layout, for texts of up to `max_length` tokens. Raises UsageError for a plan of other lengths."""
    if layout == "packed":
        if options.lengths:
            raise UsageError(
                "--tensorrt.lengths are those that texts are padded to, and --layout packed pads none; leave it out"
            )
        tokens = options.best_batch * max_length
        best = min(tokens, options.packed_tokens)
        limits = {"best_batch": options.best_batch, "max_tokens": options.packed_tokens}
        return [packed_profile(max_length, best_tokens=best, **limits)]
    lengths, best_batch = [max_length], options.best_batch
    if options.lengths:
        lengths, best_batch = read_lengths(options.lengths, max_length)
    return padded_profiles(lengths, best_batch=best_batch, features=features)


def make_proof(checkpoint: Checkpoint) -> Reference:
    """The checkpoint's answers on made-up batches and on its held-out rows."""
    return make_reference(checkpoint.model, checkpoint.encode_labelled(heldout_rows(checkpoint.folder, PROOF_ROWS)))


@dataclass(frozen=True)
class Proof:
    """What graph and plan are held to."""

    reference: Reference
    precision: str
    layout: str

    def of_graph(self, model: BertForSequenceClassification, graph: onnx.ModelProto) -> tuple[Parity, Accuracy | None]:
        """Prove the graph in FP32, where it must equal the checkpoint, then as it is typed. Raises Failure."""
        if self.precision != "fp32":
            Proof(self.reference, "fp32", self.layout).of_graph(model, write_graph(model, Typing(), self.layout, ()))
        return self._prove(graph_engine(graph), self._rows(None), what="graph")

    def of_plan(self, engine: Any, profiles: Sequence[Profile]) -> tuple[Parity, Accuracy | None]:
        """Prove an opened plan on this machine's GPU. Raises Failure."""
        return self._prove(plan_engine(engine, profiles), self._rows(profiles), what="plan")

    def _prove(self, engine: Engine, reference: Reference, *, what: str) -> tuple[Parity, Accuracy | None]:
        title = f"{what} in {self.precision}"
        parity, accuracy = prove(engine, reference, BOUNDS[self.precision], title=title)
        if failures := failures_of(parity, accuracy):
            reasons = "\n  ".join(failures)
            raise Failure(f"the {title} does not equal its checkpoint; no release was written:\n  {reasons}")
        return parity, accuracy

    def _rows(self, profiles: Sequence[Profile] | None) -> Reference:
        """The batches that can be asked: the packed layout has no rows without a token, a plan has its profiles.

        Eight bits have ranges of real texts; tokens in random order leave them, so there the texts alone are compared. Every
        text is, in smaller batches where a profile holds fewer.
        """
        made_up = [] if self.precision in EIGHT_BITS else self.reference.made_up
        if self.layout == "packed":
            kept = [(inputs, ours, inputs[1].any(axis=1)) for inputs, ours in made_up]
            made_up = [(tuple(array[rows] for array in inputs), ours[rows]) for inputs, ours, rows in kept]
        if not profiles:
            return dataclasses.replace(self.reference, made_up=made_up)
        made_up = [made for made in made_up if _fits(made[0], profiles, self.layout)]
        most = min(profile.texts for profile in profiles)
        batches = [
            (rows[start : start + most], tuple(array[start : start + most] for array in inputs))
            for rows, inputs in self.reference.batches
            for start in range(0, len(rows), most)
        ]
        return dataclasses.replace(self.reference, made_up=made_up, batches=batches)


def _fits(inputs: Inputs, profiles: Sequence[Profile], layout: str) -> bool:
    feed = pack(*inputs) if layout == "packed" else feed_of(inputs)
    return find_profile(profiles, {name: array.shape for name, array in feed.items()}) is not None


def engine_json(record: EngineRecord, options: TensorRTOptions, refittable: bool, proof: dict[str, Any]) -> dict[str, Any]:
    """What a deployed version says of itself, where there is no manifest."""
    facts = {key: value for key, value in dataclasses.asdict(record).items() if key not in {"parity", "accuracy"}}
    return facts | {
        "container": os.environ.get(CONTAINER_VARIABLE),
        "version_compatible": options.version_compatible,
        "hardware_compatibility": options.hardware_compatibility,
        "refittable": refittable,
        "outputs": list(options.extra_outputs),
        "proof": proof,
    }
