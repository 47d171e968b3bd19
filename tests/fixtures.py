"""A tiny base model, tiny data, and a checkpoint that the real commands made of them, each once a session."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from builders.build import Build, build
from contract.files import write_json
from tests.tiny import random_bert, tiny_config, tiny_texts, tiny_vocabulary
from tests.training.made_runs import write_sources
from training.finetune import Finetune, finetune
from training.merge import Merge
from training.merge import main as merge
from training.quantize_aware import QuantizeAware, quantize_aware

TINY_RUN: dict[str, Any] = {
    "dataset": "csv",
    "text": "sentence",
    "label": "kind",
    "rank": 4,
    "alpha": 8.0,
    "max_length": 16,  # shorter than some texts
    "epochs": 4,
    "learning_rate": 1e-2,
    "tokens_per_batch": 96,
    "precision": "fp32",
    "device": "cpu",
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices are slower on two threads, and one thread sums in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a bare encoder: config.json, model.safetensors without a head, vocab.txt."""
    folder = tmp_path_factory.mktemp("base") / "tiny-bert"
    folder.mkdir()
    write_base(folder)
    return folder


def write_base(folder: Path) -> None:
    """Fill `folder` as `tiny_base` describes."""
    vocabulary = tiny_vocabulary()
    config = tiny_config(vocab_size=len(vocabulary))
    values = dataclasses.asdict(config)
    del values["num_labels"]
    write_json(folder / "config.json", {"model_type": "bert", "hidden_act": "gelu", **values})
    state = random_bert(config, seed=5, std=0.1).bert.state_dict()  # gentle enough to learn on
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 sentences, each of an animal or of a plant."""
    path = tmp_path_factory.mktemp("data") / "sentences.csv"
    write_texts(path)
    return path


def write_texts(path: Path) -> None:
    """Write what `tiny_csv` describes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "kind"), *tiny_texts(160)])


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_csv: Path) -> Path:
    """A checkpoint of `training.finetune`."""
    output = tmp_path_factory.mktemp("finetuned") / "checkpoint"
    finetune(Finetune(output=output, data=tiny_csv, base=str(tiny_base), **TINY_RUN))
    return output


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory, finetuned: Path) -> Path:
    """`finetuned` through `training.merge`."""
    output = tmp_path_factory.mktemp("merged") / "checkpoint"
    merge(Merge(checkpoint=finetuned, output=output))
    return output


@pytest.fixture(scope="session")
def trained_int8(tmp_path_factory: pytest.TempPathFactory, merged: Path) -> Path:
    """`merged` through `training.quantize_aware`."""
    output = tmp_path_factory.mktemp("int8") / "checkpoint"
    quantize_aware(QuantizeAware(checkpoint=merged, output=output, tokens_per_batch=96, device="cpu"))
    return output


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory, merged: Path) -> Path:
    """`merged` through `builders.build`."""
    return _build(merged, tmp_path_factory.mktemp("release"), "first")


@pytest.fixture(scope="session")
def second_release(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_csv: Path) -> Path:
    """A release of another fine-tuning of the same base: other weights, other answers, the same labels."""
    return _make(tmp_path_factory.mktemp("second"), "second", tiny_base, tiny_csv, seed=1, epochs=1)


def tiny_release(folder: Path) -> Path:
    """All of the above, for commands that are no tests: base, data, fine-tuning, merging, release."""
    torch.set_num_threads(1)
    (folder / "base").mkdir(parents=True)
    write_base(folder / "base")
    write_texts(folder / "sentences.csv")
    return _make(folder, "tiny", folder / "base", folder / "sentences.csv")


def _make(folder: Path, name: str, base: Path, data: Path, **changes: Any) -> Path:
    finetune(Finetune(output=folder / "finetuned", data=data, base=str(base), **TINY_RUN | changes))
    merge(Merge(checkpoint=folder / "finetuned", output=folder / "merged"))
    return _build(folder / "merged", folder, name)


@pytest.fixture(scope="session")
def tabular_merged(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A merged checkpoint that reads five numbers beside the text."""
    folder = tmp_path_factory.mktemp("tabular")
    data = write_sources(folder)["stackoverflow"]
    options = TINY_RUN | {"dataset": "stackoverflow", "text": None, "label": None, "tabular": True, "epochs": 2}
    finetune(Finetune(output=folder / "finetuned", data=data, base=str(tiny_base), **options))
    merge(Merge(checkpoint=folder / "finetuned", output=folder / "merged"))
    return folder / "merged"


@pytest.fixture(scope="session")
def tabular_release(tmp_path_factory: pytest.TempPathFactory, tabular_merged: Path) -> Path:
    """`tabular_merged` through `builders.build`."""
    return _build(tabular_merged, tmp_path_factory.mktemp("tabular-release"), "tabular")


def _build(merged: Path, folder: Path, name: str) -> Path:
    build(Build(checkpoint=merged, output=folder / "release", repository=folder / "model_repository", name=name))
    return folder / "release"
