"""Folders that `tritonserver` and `serving` read: a deployed repository, and a release to publish into it.

The committed `model_repository/` is the source. A deployed repository starts with its configs alone; versions, pins and
labels are put there by `serving.releases`, so the source stays clean.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builders.engine_record import EngineRecord
from builders.model_config import render_configs
from builders.tokenizer_contract import make_contract
from contract.command import UsageError
from contract.files import new_folder, sha256_of, write_bytes, write_json
from contract.probes import Probes
from contract.release import LABELS_FILE, RELEASE_FILE, Manifest, hash_files, release_id
from contract.tensors import ENGINE, ENSEMBLES, STEPS, TOKENIZER
from contract.tokenizer import CONTRACT_FILE

SOURCE = Path(__file__).resolve().parents[1] / "model_repository"
VERSION = "1"
CONTAINER_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"  # set in NVIDIA's images, as 26.07


def render_repository(target: Path) -> None:
    """Write a deployed repository without any release. Raises UsageError when `target` exists."""
    with new_folder(target) as folder:
        render_configs(folder)
        for ensemble in ENSEMBLES:
            (folder / ensemble / VERSION).mkdir()
            write_bytes(folder / ensemble / VERSION / ".gitkeep", b"")  # Triton loads no version from an absent folder


def write_release(
    target: Path,
    *,
    name: str,
    tokenizer_json: bytes,
    labels: list[str],
    write_engine: Callable[[Path], EngineRecord],
    make_probes: Callable[[dict[str, Any]], Probes],
    features: Sequence[str] = (),
    **facts: Any,
) -> Manifest:
    """Write a release folder and return its manifest; `target` appears whole or not at all.

    Args:
        name: first part of the release id.
        write_engine: writes the engine's files into the folder it is given and returns what it wrote and proved; what it
            raises stops the release.
        make_probes: the release's own expected answers, given the parity in what `write_engine` returned.
        features: names of the numbers that it reads beside each text.
        **facts: the other fields of `contract.release.Manifest`.

    Raises:
        UsageError: `target` exists, or a label is more than one line.
    """
    broken = [label for label in labels if "\n" in label]
    if broken:
        raise UsageError(f"the label {broken[0]!r} must be one line, as Triton reads a label a line; rename it and train again")
    with new_folder(target) as folder:
        for step in STEPS:
            (folder / step).mkdir()
            shutil.copyfile(SOURCE / step / VERSION / "model.py", folder / step / "model.py")
        write_bytes(folder / TOKENIZER / "tokenizer.json", tokenizer_json)
        write_json(folder / TOKENIZER / CONTRACT_FILE, make_contract(tokenizer_json))
        write_bytes(folder / LABELS_FILE, "".join(f"{label}\n" for label in labels).encode())
        record = write_engine(folder / ENGINE)
        release = release_id(name, hash_files(folder))
        write_json(folder / TOKENIZER / RELEASE_FILE, {"release": release, "features": list(features)})
        make_probes(record.parity).write(folder)
        manifest = Manifest(
            release=release,
            labels=labels,
            features=list(features),
            engine=record.title,
            container=os.environ.get(CONTAINER_VARIABLE),
            tokenizer_sha256=sha256_of(folder / TOKENIZER / "tokenizer.json"),
            files=hash_files(folder),
            **dataclasses.asdict(record),
            **facts,
        )
        manifest.write(folder)
    return manifest
