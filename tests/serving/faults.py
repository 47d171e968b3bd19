"""Releases with a fault inside and a manifest that vouches for it, so that only trying them out gives them away."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from contract.files import write_json
from contract.probes import read_probes
from contract.release import RELEASE_FILE, hash_files, read_manifest
from contract.tensors import ENGINE, TOKENIZER

ENGINE_PATH = f"{ENGINE}/model.onnx"
TOKENIZER_PATH = f"{TOKENIZER}/tokenizer.json"


def flip_bits(release: Path) -> None:
    """Two hundred bits of the engine, anywhere: some hit the exponent of a weight, or the structure of the file."""
    data = bytearray((release / ENGINE_PATH).read_bytes())
    generator = random.Random(0)
    for _ in range(200):
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    (release / ENGINE_PATH).write_bytes(data)


def truncate(release: Path) -> None:
    """The first half of the engine."""
    data = (release / ENGINE_PATH).read_bytes()
    (release / ENGINE_PATH).write_bytes(data[: len(data) // 2])


def _change_weights(release: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> None:  # type: ignore[type-arg]
    model = onnx.load(release / ENGINE_PATH)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(tensor.name, array)), tensor.name))
    onnx.save(model, release / ENGINE_PATH)


def reshape_weights(release: Path) -> None:
    """Every matrix that is not square lies on its side."""
    _change_weights(release, lambda _, array: array.T if array.ndim == 2 else array)


def plant_nan(release: Path) -> None:
    """One NaN in every matrix."""

    def change(_: str, array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        changed = array.copy()
        changed.flat[array.size // 2] = np.nan
        return changed if array.ndim == 2 else array

    _change_weights(release, change)


def permute_weights(release: Path) -> None:
    """Every matrix with its rows upside down: all shapes fit, every answer is wrong."""
    _change_weights(release, lambda _, array: array[::-1] if array.ndim == 2 else array)


def change_vocabulary(release: Path) -> None:
    """A tokenizer whose words have other numbers."""
    tokenizer = json.loads((release / TOKENIZER_PATH).read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    numbers = [vocabulary[word] for word in words]
    vocabulary.update(zip(words, reversed(numbers), strict=True))
    write_json(release / TOKENIZER_PATH, tokenizer)


def rename(release: Path) -> None:
    """A tokenizer that answers under another name than the manifest's."""
    _name(release, "somebody-else")


def empty_tokenizer(release: Path) -> None:
    """A tokenizer without anything in it."""
    (release / TOKENIZER_PATH).write_text("{}", encoding="utf-8")


FAULTS: dict[str, Callable[[Path], None]] = {
    "bit flips": flip_bits,
    "truncated engine": truncate,
    "wrong shapes": reshape_weights,
    "NaN weights": plant_nan,
    "permuted weights": permute_weights,
    "another vocabulary": change_vocabulary,
    "another name": rename,
    "empty tokenizer": empty_tokenizer,
}


def _name(release: Path, name: str) -> None:
    """What the release answers as."""
    path = release / TOKENIZER / RELEASE_FILE
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"release": name})


def faulty(release: Path, target: Path, fault: str) -> Path:
    """A copy of `release` with a fault out of `FAULTS`; its manifest fits, and it has an id of its own."""
    shutil.copytree(release, target)
    name = f"faulty-{fault.replace(' ', '-')}"
    _name(target, name)
    FAULTS[fault](target)
    return vouch(target, release=name)


def variant(release: Path, target: Path, *, name: str, shift: float) -> Path:
    """A good release whose first logit is higher by `shift`: the same labels but for close calls, and no answer the same."""
    shutil.copytree(release, target)

    def change(tensor: str, array: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        changed = array.copy()
        if tensor in {"classifier.bias", "tabular.classifier.bias"}:
            changed[0] += shift
        return changed

    _change_weights(target, change)
    probes = read_probes(target)
    logits = [[row[0] + shift, *row[1:]] for row in probes.logits]
    dataclasses.replace(probes, logits=logits).write(target)
    _name(target, name)
    return vouch(target, release=name)


def vouch(folder: Path, *, release: str | None = None) -> Path:
    """Make the manifest fit what lies in `folder`, and say that it is `release`."""
    value = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    write_json(folder / "manifest.json", value | {"files": hash_files(folder), "release": release or value["release"]})
    read_manifest(folder)
    return folder
