"""A release: one tokenizer version and one engine version that belong together, as a folder.

    RELEASE/manifest.json                            this module's `Manifest`
    RELEASE/labels.txt                               one label a line, in the order of the logits
    RELEASE/probes.json                              texts and the answers they must get (`contract.probes`)
    RELEASE/bert_tokenizer/{model.py, tokenizer.json, contract.json, release.json}
    RELEASE/bert_engine/{model.py, engine.json}      and the engine: model.onnx, model.xml + model.bin, model.pt2 or model.plan

`builders` write it, `serving` publishes it. Its id is derived from the hashes of its files.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json, sha256_of, write_json

MANIFEST_FILE = "manifest.json"
LABELS_FILE = "labels.txt"
RELEASE_FILE = "release.json"  # beside the tokenizer: {"release": id, "features": names}, what answers carry and requests need
SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a release is made of and what was proved about it."""

    release: str
    """Id: a name and the first 12 hex digits of the hash over `files`."""
    labels: list[str]
    """Label names in the order of the logits."""
    engine: str
    """Runtime and precision as people read them, `onnxruntime fp32`."""
    kind: str
    """Runtime that opens the engine: onnxruntime, openvino, torch or tensorrt."""
    precision: str
    """fp32, bf16, fp16, int8 or fp8."""
    layout: str
    """padded or packed."""
    runtime: dict[str, str]
    """{"name", "version"} of the runtime's package at build time."""
    hardware: dict[str, Any]
    """What the engine was built and proved on: CPU and its flags, or GPU name, compute capability and driver."""
    container: str | None
    """NVIDIA Triton container in which it was built, `26.07`; None outside of one."""
    profiles: list[dict[str, Any]]
    """Shapes the engine was optimised for; empty where any shape is served."""
    max_length: int
    """Tokens the model reads of one text; longer ones are truncated and flagged."""
    features: list[str] = dataclasses.field(default_factory=list)
    """Names of the numbers that it reads beside each text, in the order of `features`; empty where it reads text alone."""
    checkpoint_sha256: str
    """Of the merged checkpoint's model.safetensors."""
    tokenizer_sha256: str
    """Of the release's tokenizer.json."""
    parity: dict[str, Any]
    """How the engine was proved equal to the checkpoint: shapes tried, the largest logit difference, the bounds."""
    accuracy: dict[str, Any]
    """Task accuracy of engine and checkpoint on labelled held-out rows, and whether they differ by more than chance; empty
    where the machine that built the engine could not run it."""
    versions: dict[str, str]
    """Library versions at build time."""
    files: dict[str, str]
    """sha256 of every file of the release but this manifest, by path."""
    schema: int = SCHEMA

    def write(self, folder: Path) -> None:
        """Write `folder`/manifest.json."""
        write_json(folder / MANIFEST_FILE, dataclasses.asdict(self))


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by path relative to it, the manifest left out."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    hashes.pop(MANIFEST_FILE, None)
    return hashes


def release_id(name: str, artefacts: dict[str, str]) -> str:
    """`name` and the first 12 hex digits of the hash over `artefacts` (path -> sha256)."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(artefacts.items()))
    return f"{name}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a release folder, every file checked against its hash.

    Raises `UsageError` for a folder that is no release, has another schema, or holds changed, missing or extra files.
    """
    value = read_json(folder / MANIFEST_FILE)
    names = {field.name for field in dataclasses.fields(Manifest)}
    value = {"features": []} | value if isinstance(value, dict) else value  # older ones of this schema read text alone
    if not isinstance(value, dict) or set(value) != names or value["schema"] != SCHEMA:
        said = f" (it says schema {value['schema']!r})" if isinstance(value, dict) and "schema" in value else ""
        raise UsageError(
            f"{folder / MANIFEST_FILE} is not a release manifest of schema {SCHEMA}{said}; build the release again"
        )
    manifest = Manifest(**value)
    found = hash_files(folder)
    different = sorted(path for path in set(found) | set(manifest.files) if found.get(path) != manifest.files.get(path))
    if different:
        raise UsageError(f"the release {folder} was changed after it was built: {', '.join(different)}; build it again")
    return manifest
