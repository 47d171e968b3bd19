"""What the tests of whole runs share: their options, what two runs must have in common, and a signal at a certain step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from contract.files import read_json, read_json_lines, sha256_of
from tests.fixtures import TINY_RUN
from training.bert import BertModel
from training.finetune import Finetune
from training.state import STATE_FILE, load_state, state_folder


def options(output: Path, data: Path, base: Path, /, **changes: Any) -> Finetune:
    """The tiny run with changes."""
    given: dict[str, Any] = {"output": output, "data": data, "base": str(base)}
    return Finetune(**(given | TINY_RUN | changes))


def command_line(run: Finetune) -> list[str]:
    """What a user types for `run`, after `python`."""
    flags: list[str] = []
    for name, value in run.to_json().items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            flags += [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return ["-m", "training.finetune", *flags]


def python(run: Finetune) -> list[str]:
    """`command_line` under this interpreter."""
    return [sys.executable, *command_line(run)]


def result_of(output: Path) -> dict[str, Any]:
    """What must be the same bits in two runs: weights, predictions, and every figure that is not a time."""
    weights = next(path for path in output.iterdir() if path.name in {"model.safetensors", "adapter_model.safetensors"})
    untimed = ("seconds", "samples_per_s")
    epochs = [{key: epoch[key] for key in epoch if key not in untimed} for epoch in read_json(output / "run.json")["epochs"]]
    lines = [{key: row[key] for key in row if key not in untimed} for row in read_json_lines(output / "metrics.jsonl")]
    return {
        "weights": sha256_of(weights),
        "predictions": (output / "predictions.jsonl").read_bytes(),
        "heldout": (output / "heldout.jsonl").read_bytes(),
        "epochs": epochs,
        "test": read_json(output / "run.json")["test"],
        "metrics": lines,
    }


def progress_of(output: Path) -> tuple[int, int]:
    """(whole epochs, batches after them) that the saved state of a run has behind it."""
    _, values = load_state(state_folder(output) / STATE_FILE)
    return len(values["results"]), int(values["done"])


@contextlib.contextmanager
def signalled(number: int, *, forward: int, training: bool) -> Iterator[None]:
    """Send this process signal `number` during its `forward`-th forward pass, from 1, in training or in evaluation."""
    passes = 0

    def count(module: Any, _: Any) -> None:
        nonlocal passes
        if isinstance(module, BertModel) and module.training == training:
            passes += 1
            if passes == forward:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    hook = register_module_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()
        signal.signal(number, before)
    assert passes >= forward, f"only {passes} forward passes: no signal was sent"
