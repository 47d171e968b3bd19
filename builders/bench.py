"""The CPU engine beside PyTorch and transformers: the same weights, the same inputs, one run, alternating.

    python -m builders.bench --output docs/measurements/engines.json

Every engine is timed once per round, in turn, so that a busy moment of the machine hits all of them; medians and spreads are
over the rounds. The ceiling, a large fp32 matrix product, is measured in every round too. Read the ratios.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import tyro
from tqdm import tqdm

from builders.onnx_export import build_onnx
from contract.command import UsageError, run_command
from contract.files import write_json
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LOGITS
from training.bert import BertForSequenceClassification
from training.pretrained import EMBEDDED, find_base, load_model

SHAPES = ((1, 16), (1, 32), (1, 128), (8, 128), (1, 512))
CEILING_SIZE = 2048
SETTLE_S = 0.05  # idle threads of one runtime spin for a while, and would take the cores from the next one
LABELS = 2
REFERENCE = "transformers"

Call = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time the CPU engine beside PyTorch and transformers."""

    output: Path
    """JSON file to write."""
    base: str = EMBEDDED
    """Model whose shape and weights are used: minilm, a Hugging Face BERT folder, or a hub name."""
    rounds: int = 15
    """Rounds over all engines and shapes, at least 3; two more come first and are not counted."""

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise UsageError(f"--rounds is {self.rounds}; it must be at least 3")


def ours_onnxruntime(model: BertForSequenceClassification) -> Call:
    """The graph that a release holds, in a session set up as the served one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(build_onnx(model).SerializeToString(), options, providers=["CPUExecutionProvider"])

    def call(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = session.run([LOGITS], {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
        return logits

    return call


def ours_torch(model: BertForSequenceClassification) -> Call:
    """`training.bert`, eager, without a mask where nothing is padded, as transformers does by itself."""

    def call(ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = model(torch.from_numpy(ids), None if mask.all() else torch.from_numpy(mask)).numpy()
        return logits

    return call


def plain_transformers(model: BertForSequenceClassification, folder: Path) -> Call:
    """transformers' BertForSequenceClassification with its default attention, eager, the same weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig.from_pretrained(folder, num_labels=LABELS)
    theirs = BertForSequenceClassification(config).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    return lambda ids, mask: theirs(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()


@torch.inference_mode()
def measure(engines: dict[str, Call], vocabulary: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by shape and engine, one a round; `ceiling` holds the GFLOP/s of a matrix product, one a round."""
    generator = np.random.default_rng(0)
    inputs = {
        f"{batch}x{tokens}": (
            generator.integers(0, vocabulary, (batch, tokens), dtype=np.int32),
            np.ones((batch, tokens), dtype=np.int32),
        )
        for batch, tokens in SHAPES
    }
    times: dict[str, dict[str, list[float]]] = {shape: {name: [] for name in engines} for shape in inputs}
    times["ceiling"] = {"gflops": []}
    matrix = torch.rand(CEILING_SIZE, CEILING_SIZE)
    for number in tqdm(range(-2, rounds), desc="rounds", mininterval=0.5):
        for shape, (ids, mask) in inputs.items():
            for name, call in engines.items():
                milliseconds = 1000 * _seconds(call, ids, mask)
                if number >= 0:
                    times[shape][name].append(milliseconds)
        seconds = _seconds(torch.mm, matrix, matrix)
        if number >= 0:
            times["ceiling"]["gflops"].append(2 * CEILING_SIZE**3 / seconds / 1e9)
    return times


def _seconds(call: Callable[..., object], *arguments: object) -> float:
    time.sleep(SETTLE_S)
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def summarise(times: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Median, least and greatest of each series, and how many times faster than transformers each engine is."""
    result: dict[str, Any] = {}
    for shape, series in times.items():
        result[shape] = {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in series.items()
        }
        for name, values in series.items():
            if REFERENCE in series:
                ratios = [theirs / ours for theirs, ours in zip(series[REFERENCE], values, strict=True)]
                result[shape][name]["speedup"] = statistics.median(ratios)
    return result


def markdown(measured: dict[str, Any]) -> str:
    """The table for the README: median ms, least to greatest, and the speed-up over transformers."""
    shapes = [shape for shape in measured["ms"] if shape != "ceiling"]
    engines = list(measured["ms"][shapes[0]])
    lines = ["| batch x tokens | " + " | ".join(engines) + " |", "|---" * (len(engines) + 1) + "|"]
    for shape in shapes:
        cells = [
            f"{entry['median']:.1f} ms ({entry['min']:.1f} to {entry['max']:.1f}), {entry['speedup']:.2f}x"
            for entry in measured["ms"][shape].values()
        ]
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench(options: Bench) -> None:
    """Run the command; see the module docstring."""
    folder = find_base(options.base)
    model, _ = load_model(folder, num_labels=LABELS, new_head=True)
    engines = {
        "our engine": ours_onnxruntime(model.eval()),
        "our BERT in torch": ours_torch(model),
        REFERENCE: plain_transformers(model, folder),
    }
    times = measure(engines, model.config.vocab_size, options.rounds)
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "base": options.base,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime")},
        "ms": summarise(times),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, measured)
    print(markdown(measured))
    print(f"\nceiling: {statistics.median(times['ceiling']['gflops']):.0f} GFLOP/s fp32; wrote {options.output}")


if __name__ == "__main__":
    run_command(lambda: bench(tyro.cli(Bench, prog="python -m builders.bench", description=__doc__)))
