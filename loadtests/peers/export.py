"""The merged checkpoint as ONNX folders for a peer's ONNX Runtime, made by optimum's own commands: float32, and int8 of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Set as AbstractSet
from pathlib import Path

from contract.command import Failure
from contract.files import sha256_of, write_bytes

STAMP = "checkpoint.sha256"


def export_onnx(checkpoint: Path, target: Path, python: Path, flags: AbstractSet[str]) -> None:
    """Fill `target` with the folders float32 and int8, unless they are there already. Raises `Failure` with optimum's message.

    int8 is optimum's dynamic quantisation with the preset of the processor's instructions.
    """
    digest = sha256_of(checkpoint / "model.safetensors").encode()
    stamp = target / STAMP
    if stamp.exists() and stamp.read_bytes() == digest:
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    optimum = str(python.with_name("optimum-cli"))
    preset = "--avx512_vnni" if "avx512_vnni" in flags else "--avx2"
    plain = str(target / "float32")
    _call([optimum, "export", "onnx", "--model", str(checkpoint), "--task", "text-classification", plain])
    _call([optimum, "onnxruntime", "quantize", "--onnx_model", plain, preset, "--output", str(target / "int8")])
    write_bytes(stamp, digest)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-500:]}")
