"""What the tests of `builders.build` share: building into a folder, the command as a user calls it, a checkpoint to break."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from builders.build import Build, build
from contract.files import read_json, sha256_of, write_json
from contract.release import Manifest, read_manifest

ROOT = Path(__file__).resolve().parents[2]
CERTIFICATE = "merge_certificate.json"
WEIGHTS = "model.safetensors"


def run_build(checkpoint: Path, folder: Path, **options: Any) -> Manifest:
    """Build into `folder`/release, beside a repository `folder`/repository."""
    build(Build(checkpoint=checkpoint, output=folder / "release", repository=folder / "repository", **options))
    return read_manifest(folder / "release")


def assert_nothing_written(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} <= {"checkpoint"}


def break_weights(checkpoint: Path, factor: float) -> None:
    """Scale the head; the certificate's hash is made to fit, so that only the engine's own proof can object."""
    tensors = load_file(checkpoint / WEIGHTS)
    tensors["classifier.weight"] *= factor
    save_file(tensors, checkpoint / WEIGHTS, {"format": "pt"})
    certificate = read_json(checkpoint / CERTIFICATE)
    certificate["hashes"]["merged"] = sha256_of(checkpoint / WEIGHTS)
    write_json(checkpoint / CERTIFICATE, certificate)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m builders.build` as a user calls it."""
    words = [sys.executable, "-m", "builders.build", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)
