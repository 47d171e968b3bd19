"""Build a release out of a merged checkpoint: engine, tokenizer, labels, manifest, each proved before it is written.

    python -m builders.build build/merged --output build/release
    python -m builders.build build/merged --engine openvino --precision bf16 --output build/release
    python -m builders.build build/merged --engine auto --output build/release        the fastest here, on your own texts
    python -m builders.build build/merged --threads auto --instances auto --output build/release     measured here as well
    python -m builders.build build/merged --engine tensorrt --precision fp16 --output build/release

The release refuses to exist when its engine does not equal the checkpoint within the bounds of its precision (see
`builders.parity`), loses accuracy on the held-out rows (see `builders.accuracy`), or when the checkpoint is not certified.
Publish it with `python -m serving.releases publish`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import tyro

from builders.accuracy import Accuracy
from builders.calibration import read_calibration
from builders.choose import write_fastest
from builders.engine_record import EngineRecord
from builders.engines import EngineName, Precision, Source, find_kind, runnable_kinds, write_cpu_engine
from builders.hardware import cpu_flags
from builders.instances import place_engine
from builders.parity import Int32, Reference, make_reference
from builders.placement import Number, check_numbers
from builders.probes import make_probes
from builders.quantization_report import QuantizationReport, TrainedReport, write_report
from builders.quantize import quantise_model
from builders.quantize_trained import quantise_trained
from builders.repository import render_repository, write_release
from builders.tensorrt_release import TensorRTOptions
from builders.tensorrt_release import write_engine as write_tensorrt_engine
from contract.command import Failure, UsageError, run_command
from contract.release import Manifest
from training.batches import Encoded
from training.checkpoint import Checkpoint, check_certified, heldout_rows, load_checkpoint
from training.trained_int8 import read_trained, read_validation

Layout = Literal["padded", "packed"]

TIMED_TEXTS = 64  # of which auto times the answers
PLACED_TEXTS = 128  # on which threads and instances are measured
EXACT_TEXTS = 256  # compared with an engine that may not flip a label: any of them tells
ROUNDED_TEXTS = 2000  # with one that may: enough to refuse a loss of one point, as tests/builders/test_accuracy.py shows


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build a release out of a merged checkpoint."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder, of training.merge."""
    output: Path
    """Release folder to write; it must not exist."""
    engine: EngineName = "onnxruntime"
    """onnxruntime, openvino and torch run on a CPU (torch on CUDA too); tensorrt needs NVIDIA's. auto measures every engine
    that this machine can run on the held-out texts and takes the fastest that passes."""
    precision: Precision | None = None
    """fp32 when left out; auto then tries all. int8 is calibrated on the texts of training; a checkpoint of
    training.quantize_aware brings its ranges."""
    threads: Number = 0
    """Of each instance of an engine for a CPU; 0: every core of the machine that serves. auto measures which number answers
    most on this one."""
    instances: Number = 1
    """Of such an engine: processes that answer at once, each with the weights in memory. auto measures."""
    layout: Layout = "padded"
    """Of tensorrt: padded, or packed, one row of the tokens of all texts of a batch. The engines for a CPU are padded."""
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)
    """How a TensorRT plan is built."""
    calibration_texts: Path | None = None
    """Texts to calibrate int8 on, .jsonl or .csv with a "text" or one a line, where the data of training is gone."""
    calibration_rows: int = 256
    """Texts on which int8 is calibrated, and as many of the validation part that choose its details, at least 2."""
    quantization_report: Path | None = None
    """Folder to write int8's report into, JSON, Markdown and a picture; it must not exist."""
    repository: Path = Path("build/model_repository")
    """Deployed repository; its configs are rendered when it does not exist yet."""
    name: str | None = None
    """First part of the release id, letters, digits, dots and dashes; the data set's name when left out."""
    probe_texts: int | None = None
    """Labelled held-out texts on which the engine is compared with the checkpoint, at least 1. When left out 256 for fp32,
    where no label may flip, and 2000 for the rest, where a point of accuracy shows; 0.3 points show on 5000 and more."""

    def __post_init__(self) -> None:
        for name, number, least in (("probe-texts", self.probe_texts, 1), ("calibration-rows", self.calibration_rows, 2)):
            if number is not None and number < least:
                raise UsageError(f"--{name} is {number}; it must be at least {least}")
        check_numbers(self.instances, self.threads, len(os.sched_getaffinity(0)))
        if self.engine == "tensorrt" and (self.instances, self.threads) != (1, 0):
            raise UsageError("--threads and --instances are of the engines for a CPU, not of --engine tensorrt")
        if self.layout != "padded" and self.engine != "tensorrt":
            raise UsageError(f"--layout {self.layout} is one of --engine tensorrt; {self.engine} takes padded")
        if self.quantization_report is not None and self.quantization_report.exists():  # before the minutes that it takes
            raise UsageError(f"--quantization-report {self.quantization_report} exists already; name another folder")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name):
            raise UsageError(f"--name is {self.name!r}; use letters, digits, dots and dashes")

    @property
    def compared_texts(self) -> int:
        """`probe_texts`, or what the precision needs where it was left out."""
        exact = self.precision == "fp32" or (self.precision is None and self.engine != "auto")
        return self.probe_texts or (EXACT_TEXTS if exact else ROUNDED_TEXTS)


def check_served(checkpoint: Checkpoint) -> None:
    """Raise `UsageError` for a checkpoint that the served pipeline cannot feed."""
    if len(checkpoint.feature_names) != checkpoint.model.config.num_features:
        raise UsageError(
            f"{checkpoint.folder} reads {checkpoint.model.config.num_features} numbers beside the text, its run.json names "
            f"{len(checkpoint.feature_names)}; train it again"
        )
    positions = checkpoint.model.config.max_position_embeddings
    if checkpoint.max_length > positions:
        raise UsageError(
            f"{checkpoint.folder} truncates at {checkpoint.max_length} tokens and has {positions} positions; train it again"
        )


def read_heldout(checkpoint: Checkpoint, limit: int) -> tuple[Encoded, list[dict[str, Any]]]:
    """At most `limit` held-out rows, encoded and as they are. Raises what `heldout_rows` and `encode_labelled` do."""
    rows = heldout_rows(checkpoint.folder, limit)
    return checkpoint.encode_labelled(rows), rows


def source_of(options: Build, checkpoint: Checkpoint) -> Source:
    """What engines are written from. The int8 graph is made when the first engine asks for it, once for all."""
    attempt = functools.cache(lambda: _attempt_int8(options, checkpoint))

    def int8_graph() -> onnx.ModelProto:
        outcome = attempt()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Source(checkpoint.model, int8_graph)


def _attempt_int8(options: Build, checkpoint: Checkpoint) -> onnx.ModelProto | UsageError | Failure:
    """The int8 graph, its report printed and written; or why there is none, which costs as many minutes to find out."""
    try:
        graph, report = make_int8(options, checkpoint)
    except (UsageError, Failure) as error:
        return error
    print(report.markdown())
    if options.quantization_report is not None:
        write_report(options.quantization_report, report)
    return graph


def make_int8(options: Build, checkpoint: Checkpoint) -> tuple[onnx.ModelProto, QuantizationReport | TrainedReport]:
    """Quantise, with the ranges that the checkpoint was trained with where it brings some. Raises UsageError or Failure."""
    trained = read_trained(checkpoint.folder)
    if trained is None:
        calibration = read_calibration(checkpoint, options.calibration_texts, rows=options.calibration_rows)
        explain = options.quantization_report is not None
        return quantise_model(checkpoint.model, checkpoint.tokenizer, calibration, explain=explain)
    if options.calibration_texts is not None:
        raise UsageError(
            f"--calibration-texts {options.calibration_texts}: {checkpoint.folder} brings the ranges that it was trained with; "
            "leave them out"
        )
    validation = read_validation(checkpoint.folder, checkpoint.labels)
    return quantise_trained(checkpoint.model, checkpoint.tokenizer, trained, validation)


def engine_writer(
    options: Build, checkpoint: Checkpoint, heldout: Callable[[], Encoded], reference: Callable[[], Reference]
) -> Callable[[Path], EngineRecord]:
    """What fills the engine's folder of the release, for the engine and precision of the options. Raises `UsageError`."""
    flags, precision, source = cpu_flags(), options.precision or "fp32", source_of(options, checkpoint)
    if options.engine == "tensorrt":
        texts = functools.partial(read_calibration, checkpoint, options.calibration_texts, rows=options.calibration_rows)
        settings: dict[str, Any] = {"precision": precision, "layout": options.layout, "options": options.tensorrt}
        return lambda folder: write_tensorrt_engine(folder, checkpoint, reference=reference(), calibration=texts, **settings)
    kind = None if options.engine == "auto" else find_kind(options.engine, precision, flags)
    kinds = runnable_kinds(options.precision, flags) if kind is None else []

    def write(folder: Path) -> EngineRecord:
        if kind is None:
            record = write_fastest(folder, kinds, source, rows=sample(heldout(), TIMED_TEXTS), reference=reference)
        else:
            record = write_cpu_engine(folder, kind, source, reference())
        rows = functools.partial(sample, heldout(), PLACED_TEXTS)
        return place_engine(folder, record, instances=options.instances, threads=options.threads, rows=rows)

    return write


def sample(encoded: Encoded, count: int) -> list[Int32]:
    """At most `count` rows of token ids, the same every time."""
    chosen = np.random.default_rng(0).permutation(len(encoded.ids))[:count]
    return [np.array(encoded.ids[row], np.int32) for row in chosen]


def describe(manifest: Manifest) -> str:
    """What was proved, for people."""
    parity = manifest.parity
    where = f" ({parity['proved_on']})" if "proved_on" in parity else ""
    lines = [
        f"{manifest.engine}{where} against checkpoint on {len(parity['shapes'])} shapes and {parity['texts']} held-out texts: "
        f"logits within {parity['max_abs']:.2g} (allowed {parity['bound']:.2g}), "
        f"labels agree on {parity['label_agreement']:.2%}"
    ]
    return "\n".join([*lines, *([Accuracy(**manifest.accuracy).describe()] if manifest.accuracy else [])])


def build(options: Build) -> None:
    """Run the command; see the module docstring."""
    digest = check_certified(options.checkpoint)
    checkpoint = load_checkpoint(options.checkpoint)
    check_served(checkpoint)
    probed = functools.cache(lambda: read_heldout(checkpoint, options.compared_texts))
    reference = functools.cache(lambda: make_reference(checkpoint.model, probed()[0]))
    manifest = write_release(
        options.output,
        name=options.name or re.sub(r"[^A-Za-z0-9.-]+", "-", checkpoint.run["data"]["name"]).strip("-.") or "release",
        tokenizer_json=checkpoint.tokenizer.to_str().encode(),
        labels=checkpoint.labels,
        write_engine=engine_writer(options, checkpoint, lambda: probed()[0], reference),
        make_probes=lambda parity: make_probes(checkpoint, probed()[1], parity),
        max_length=checkpoint.max_length,
        features=checkpoint.feature_names,
        checkpoint_sha256=digest,
        versions={name: version(name) for name in ("torch", "onnx", "onnxruntime", "tokenizers")},
    )
    print(describe(manifest))
    if not options.repository.exists():
        render_repository(options.repository)
        print(f"rendered the repository {options.repository}")
    print(f"wrote release {manifest.release}: {options.output}")


if __name__ == "__main__":
    run_command(lambda: build(tyro.cli(Build, prog="python -m builders.build", description=__doc__)))
