"""Every CPU engine beside PyTorch, ONNX Runtime and OpenVINO as people usually run them: the same weights, real texts.

    python -m builders.bench build/merged --output docs/measurements/engines.json
    python -m builders.bench --show docs/measurements/engines.json            the table of a run, as Markdown

The texts are held-out ones, with their real lengths, one at a time and 32 at a time; the last, smaller batch counts. Everything
is timed once per round, in turn, so that a busy moment of the machine hits all; medians are over the rounds. The machine's
ceilings, large matrix products in fp32, bf16 and int8 by the runtime that is best at each, are measured in every round too.
Read the ratios.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from builders.bench_report import markdown, summarise
from builders.calibration import read_calibration
from builders.ceilings import OPERATIONS, bert_operations, ceiling_calls
from builders.engines import KINDS, LANES, OPENVINO_LENGTH_STEP, EngineKind, Source, write_files
from builders.hardware import cpu_flags, describe_cpu
from builders.onnx_export import build_onnx
from builders.parity import Float32, Int32
from builders.quantize import insert_qdq, quantise_model
from builders.ranges import observe_ranges, product_inputs
from builders.rivals import make_rivals
from builders.served import open_served, padding_share, row_runner
from builders.timing import BATCH_SIZES, Run, batches_of
from contract.command import UsageError, run_command
from contract.files import read_json, write_json
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.checkpoint import Checkpoint, check_certified, heldout_rows, load_checkpoint
from training.split import spread_rows

SETTLE_S = 0.02  # idle threads of one runtime spin for a while, and would take the cores from the next one
BASE_SHAPE = (8, 128)
"""(B, T) at which engines of BERT-base's shape are compared with the ceilings."""

Samples = dict[str, dict[str, list[list[float]]]]
"""Batch size -> engine -> for each round the seconds of every batch."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the CPU engines beside what people usually run."""

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """Merged checkpoint folder, of training.merge, with its held-out texts."""
    output: Path | None = None
    """JSON file to write."""
    show: Path | None = None
    """Only print the table of this earlier run."""
    rounds: int = 5
    """Rounds over all engines, at least 3; one more comes first and is not counted."""
    texts: int = 70
    """Held-out texts that are timed, at least 1; 70 are two batches of 32 and a smaller one."""
    accuracy_texts: int = 256
    """Held-out texts on which accuracy is measured, at least 1."""
    calibration_rows: int = 128
    """Training texts on which int8 is calibrated, at least 2."""
    calibration_texts: Path | None = None
    """Texts to calibrate int8 on, where the data of training is gone (see builders.build)."""
    base_shapes: bool = True
    """Also measure engines of BERT-base's shape, with random weights, against the ceilings."""

    def __post_init__(self) -> None:
        if (self.show is None) == (self.checkpoint is None or self.output is None):
            raise UsageError("pass a merged checkpoint and --output FILE, or --show FILE alone")
        least = {"rounds": 3, "texts": 1, "accuracy_texts": 1, "calibration_rows": 2}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {number}")


def our_engines(options: Bench, checkpoint: Checkpoint, scratch: Path) -> dict[str, Run]:
    """Every kind that this machine can run, opened as it is served."""
    calibration = read_calibration(checkpoint, options.calibration_texts, rows=options.calibration_rows)
    int8, _ = quantise_model(checkpoint.model, checkpoint.tokenizer, calibration)
    return open_kinds(KINDS, Source(checkpoint.model, lambda: int8), scratch)


def open_kinds(kinds: Sequence[EngineKind], source: Source, scratch: Path) -> dict[str, Run]:
    """Write each kind into a folder of its own, open it, and name it `ours: onnxruntime fp32`."""
    found: dict[str, Run] = {}
    for kind in kinds:
        if kind.lacking(cpu_flags()) is None:
            folder = scratch / f"{kind.engine}-{kind.precision}"
            folder.mkdir()
            write_files(folder, kind, source)
            found[f"ours: {kind.engine} {kind.precision}"] = row_runner(open_served(folder))
    return found


def time_engines(
    engines: Mapping[str, Run],
    rows: Sequence[Int32],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    settle_s: float = SETTLE_S,
) -> tuple[Samples, dict[str, list[float]]]:
    """(samples, GFLOP/s of each runtime's product in each round). One round more comes first and is not counted."""
    samples: Samples = {str(size): {name: [] for name in engines} for size in BATCH_SIZES}
    products = ceiling_calls()
    ceilings: dict[str, list[float]] = {name: [] for name in products}
    for number in tqdm(range(-1, rounds), desc="rounds", mininterval=0.5):
        for size in BATCH_SIZES:
            for name, run in engines.items():
                time.sleep(settle_s)
                seconds = [_seconds(lambda: run(batch), clock) for batch in batches_of(rows, size)]  # noqa: B023 - called at once
                if number >= 0:
                    samples[str(size)][name].append(seconds)
        for name, product in products.items():
            time.sleep(settle_s)
            seconds_once = _seconds(product, clock)
            if number >= 0:
                ceilings[name].append(OPERATIONS / seconds_once / 1e9)
    return samples, ceilings


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def measure_accuracy(engines: Mapping[str, Run], rows: Sequence[Int32], labels: Sequence[int]) -> dict[str, dict[str, float]]:
    """By engine: the share of rows answered rightly, and the share answered otherwise than by the first engine."""
    truth = np.asarray(labels)
    first: Float32 | None = None
    result = {}
    for name, run in tqdm(engines.items(), desc="accuracy", unit="engines"):
        answers = np.concatenate([np.stack(run(batch)) for batch in batches_of(rows, 32)]).argmax(1)
        first = answers if first is None else first
        result[name] = {"accuracy": float((answers == truth).mean()), "flips": float((answers != first).mean())}
    return result


def measure_base_shape(rounds: int, scratch: Path) -> dict[str, Any]:
    """GFLOP/s of our engines in BERT-base's shape with random weights, at `BASE_SHAPE`; accuracy means nothing here."""
    model = BertForSequenceClassification(BertConfig(num_labels=2)).eval()
    batch, tokens = BASE_SHAPE
    ids = np.random.default_rng(0).integers(1000, 30_000, (batch, tokens), dtype=np.int32)
    graph = build_onnx(model, joint_attention=False)
    ranges = observe_ranges(graph, [(ids, np.ones_like(ids))])["min-max"]
    int8 = insert_qdq(graph, ranges, list(product_inputs(graph)))
    kinds = [kind for kind in KINDS if kind.engine != "torch"]
    engines = open_kinds(kinds, Source(model, lambda: int8), scratch)
    operations = bert_operations(model.config, batch=batch, tokens=tokens)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in tqdm(range(-1, rounds), desc="BERT-base's shape", unit="rounds"):
        for name, run in engines.items():
            time.sleep(SETTLE_S)
            once = _seconds(lambda: run(list(ids)), time.perf_counter)  # noqa: B023 - called at once
            if number >= 0:
                seconds[name].append(once)
    return {
        "batch": batch,
        "tokens": tokens,
        "gigaoperations": operations / 1e9,
        "ms": {name: [1000 * value for value in values] for name, values in seconds.items()},
    }


def bench(options: Bench) -> None:
    """Run the command; see the module docstring."""
    if options.show is not None:
        earlier = read_json(options.show)
        if not isinstance(earlier, dict) or "goals" not in earlier:
            raise UsageError(
                f"--show {options.show} is not a file of this bench, or of an older one; run it again with --output"
            )
        print(markdown(earlier))
        return
    if options.checkpoint is None or options.output is None:
        raise UsageError("pass a merged checkpoint and --output FILE")
    check_certified(options.checkpoint)
    checkpoint = load_checkpoint(options.checkpoint)
    if checkpoint.feature_names:
        raise UsageError(
            f"{options.checkpoint} reads numbers beside the text, and the rivals cannot; bench one that reads text alone"
        )
    encoded = checkpoint.encode_labelled(heldout_rows(options.checkpoint, max(options.texts, options.accuracy_texts)))
    rows, labels = [np.array(ids, np.int32) for ids in encoded.ids], encoded.labels
    timed = spread_rows(rows, options.texts)
    judged = spread_rows(range(len(rows)), options.accuracy_texts)
    with tempfile.TemporaryDirectory() as scratch:
        engines = make_rivals(options.checkpoint, Path(scratch)) | our_engines(options, checkpoint, Path(scratch))
        samples, ceilings = time_engines(engines, timed, rounds=options.rounds)
        accuracy = measure_accuracy(engines, [rows[row] for row in judged], [labels[row] for row in judged])
    with tempfile.TemporaryDirectory() as scratch:
        base = measure_base_shape(options.rounds, Path(scratch)) if options.base_shapes else None
    measured = {
        **describe(options, checkpoint, timed),
        "accuracy_texts": len(judged),
        **summarise(samples, ceilings, accuracy, [len(row) for row in timed], base),
    }
    print(markdown(measured), flush=True)  # before it is written, which a full disk refuses
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, measured)
    print(f"\nwrote {options.output}")


def describe(options: Bench, checkpoint: Checkpoint, timed: Sequence[Int32]) -> dict[str, Any]:
    """What was measured, and on what."""
    config = dataclasses.asdict(checkpoint.model.config)
    shape = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    lengths = [len(row) for row in timed]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "data": checkpoint.run["data"]["name"],
        "model": {name: config[name] for name in shape},
        "texts": len(timed),
        "tokens": {"mean": float(np.mean(lengths)), "least": min(lengths), "greatest": max(lengths)},
        "rounds": options.rounds,
        "machine": describe_cpu() | {"threads": len(os.sched_getaffinity(0))},
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime", "openvino")},
        "padding": {str(size): padding_of(batches_of(timed, size)) for size in BATCH_SIZES},
    }


def padding_of(batches: Sequence[Sequence[Int32]]) -> dict[str, float]:
    """Share of padding: in plain batches, in ours, and in OpenVINO's with lanes, whose calls are filled up to a step."""
    computed = sum(len(batch) * max(map(len, batch)) for batch in batches)
    return {
        "plain": 1 - sum(len(row) for batch in batches for row in batch) / computed,
        "ours": padding_share(batches),
        "openvino": padding_share(batches, step=OPENVINO_LENGTH_STEP, lanes=LANES),
    }


if __name__ == "__main__":
    run_command(lambda: bench(tyro.cli(Bench, prog="python -m builders.bench", description=__doc__)))
