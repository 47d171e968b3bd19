"""What is written down about a run, from the objects in hand: the content of `run.json`, and what makes two runs the same."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from contract.command import UsageError
from contract.files import sha256_of
from training.assemble import Task
from training.bert import BertForSequenceClassification
from training.loop import EpochResult
from training.lora import count_parameters
from training.metrics import Metrics
from training.options import Finetune
from training.pretrained import WEIGHTS_FILE
from training.split import hash_rows

PREDICTIONS_FILE = "predictions.jsonl"

_FREE_ON_RESUME = frozenset({"output", "resume", "save_every_s", "track"})
"""Options that may differ when a run is continued: they change no bit of its result."""


@dataclass(frozen=True)
class Machine:
    """What a run computes on, as it was resolved from the options."""

    device: torch.device
    dtype: torch.dtype
    processes: int

    def to_json(self) -> dict[str, Any]:
        """For `run.json`."""
        return {
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "processes": self.processes,
        }

    def describe(self) -> str:
        """For people."""
        values = self.to_json()
        each = f" of each of {self.processes} processes" if self.processes > 1 else ""
        return f"{values['dtype']} on {values['threads']} threads{each}"


def describe_run(
    options: Finetune,
    task: Task,
    model: BertForSequenceClassification,
    *,
    description: str,
    epochs: list[EpochResult],
    test: Metrics,
    peak_bytes: int,
    machine: Machine,
) -> dict[str, Any]:
    """The content of `run.json`."""
    trainable, total = count_parameters(model)
    return {
        "configuration": options.to_json(),
        "base": {"source": options.base, "sha256": _base_hash(task.base)},
        "data": {
            "name": task.dataset.name,
            "labels": task.dataset.names,
            "features": task.dataset.feature_names if options.tabular else [],
            "parts": _parts(task),
            "truncated_share": sum(task.train.truncated) / len(task.train.truncated),
        },
        "strategy": {"name": options.strategy, "description": description, "trainable": trainable, "total": total},
        "epochs": [dataclasses.asdict(result) for result in epochs],
        "test": dataclasses.asdict(test),
        "peak_memory_bytes": peak_bytes,
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), **machine.to_json()},
        "versions": {name: version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")},
    }


def identify(options: Finetune, task: Task, machine: Machine) -> dict[str, Any]:
    """What must be the same for a run to be continued to the same bits. Data and base count by their content."""
    free = _FREE_ON_RESUME | {"data", "base", "device", "precision"}
    configuration = {key: value for key, value in options.to_json().items() if key not in free}
    parts = {f"{part} rows": content["sha256"] for part, content in _parts(task).items()}
    return configuration | parts | machine.to_json() | {"torch": version("torch"), "base sha256": _base_hash(task.base)}


def check_same(options: Finetune, configuration: dict[str, Any]) -> None:
    """Raise `UsageError` when a finished run had other options, its `configuration`, than these."""
    now, was = options.to_json(), options.beside_defaults(configuration)
    different = [
        f"{key} was {was[key]!r}, is {value!r}"
        for key, value in now.items()
        if key not in _FREE_ON_RESUME and was[key] != value
    ]
    if different:
        raise UsageError(
            f"{options.output} is the finished run of other options: {'; '.join(different)}. Name another output, or remove it"
        )


def epoch_row(result: EpochResult) -> dict[str, float]:
    """One line of `metrics.jsonl`."""
    validation = {f"validation/{key}": value for key, value in dataclasses.asdict(result.validation).items()}
    return {
        "epoch": result.epoch,
        "train/loss": result.train_loss,
        "seconds": result.seconds,
        "samples_per_s": result.samples_per_s,
        **validation,
    }


def _parts(task: Task) -> dict[str, dict[str, Any]]:
    rows = {"train": task.split.train, "validation": task.split.validation, "test": task.split.test}
    return {part: {"rows": len(numbers), "sha256": hash_rows(task.dataset, numbers)} for part, numbers in rows.items()}


def _base_hash(base: Path) -> str | None:
    """The hash of the base's weights; none where only its vocabulary is there, for training from scratch."""
    return sha256_of(base / WEIGHTS_FILE) if (base / WEIGHTS_FILE).exists() else None


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the peak memory of this process anew, where the kernel lets it (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clear = Path("/proc/self/clear_refs")
    if clear.exists() and os.access(clear, os.W_OK):
        clear.write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that torch held on a GPU, or this process on the CPU, since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
