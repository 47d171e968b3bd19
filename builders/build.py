"""Build a release out of a merged checkpoint: engine, tokenizer, labels, manifest, each proved before it is written.

    python -m builders.build build/merged --output build/release

The release refuses to exist when its engine does not equal the checkpoint (see `builders.parity`) or when the checkpoint is
not certified. Publish it with `python -m serving.releases publish`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import tyro

from builders.onnx_export import build_onnx
from builders.parity import Float32, Int32, Parity, measure_parity
from builders.probes import make_probes
from builders.repository import render_repository, write_release
from contract.command import Failure, UsageError, run_command
from contract.files import read_json, sha256_of, write_bytes
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LOGITS
from training.batches import encode
from training.checkpoint import CERTIFICATE_FILE, Checkpoint, heldout_rows, load_checkpoint
from training.pretrained import WEIGHTS_FILE

ENGINE_FILE = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build a release out of a merged checkpoint."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder, of training.merge."""
    output: Path
    """Release folder to write; it must not exist."""
    repository: Path = Path("build/model_repository")
    """Deployed repository; its configs are rendered when it does not exist yet."""
    name: str | None = None
    """First part of the release id, letters, digits, dots and dashes; the data set's name when left out."""
    probe_texts: int = 256
    """Held-out texts on which the engine is compared with the checkpoint, at least 1."""

    def __post_init__(self) -> None:
        if self.probe_texts < 1:
            raise UsageError(f"--probe-texts is {self.probe_texts}; it must be at least 1")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", self.name):
            raise UsageError(f"--name is {self.name!r}; use letters, digits, dots and dashes")


def check_certified(folder: Path) -> str:
    """The sha256 of a merged checkpoint's weights, after comparing it with the certificate.

    Raises:
        UsageError: no certificate, one that does not pass, or weights that changed since.
    """
    if not (folder / CERTIFICATE_FILE).exists():
        raise UsageError(f"{folder} has no {CERTIFICATE_FILE}: merge it first with python -m training.merge")
    certificate = read_json(folder / CERTIFICATE_FILE)
    if certificate.get("passed") is not True:
        raise UsageError(f"the merge certificate of {folder} does not pass: {certificate.get('failures')}")
    digest = sha256_of(folder / WEIGHTS_FILE)
    certified = certificate.get("hashes", {}).get("merged")
    if digest != certified:
        raise UsageError(f"{folder / WEIGHTS_FILE} has sha256 {digest}, its certificate says {certified}: merge again")
    return digest


def write_onnx_engine(folder: Path, checkpoint: Checkpoint, texts: list[str]) -> Parity:
    """Write `folder`/model.onnx, open that very file, and prove it. Raises `Failure` when it is not the checkpoint's equal."""
    path = folder / ENGINE_FILE
    write_bytes(path, build_onnx(checkpoint.model).SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def engine(ids: Int32, mask: Int32) -> Float32:
        logits: Float32 = session.run([LOGITS], {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
        return logits

    parity = measure_parity(engine, checkpoint.model, encode(checkpoint.tokenizer, texts, []))
    if parity.failures:
        raise Failure("the engine does not equal its checkpoint; no release was written:\n  " + "\n  ".join(parity.failures))
    return parity


def build(options: Build) -> None:
    """Run the command; see the module docstring."""
    digest = check_certified(options.checkpoint)
    checkpoint = load_checkpoint(options.checkpoint)
    if checkpoint.model.config.num_features:
        raise UsageError(
            f"{options.checkpoint} reads numbers beside the text, and the served pipeline takes text alone; "
            "build a checkpoint that was trained without --tabular"
        )
    texts = [row["text"] for row in heldout_rows(options.checkpoint, options.probe_texts)]

    def write_engine(folder: Path) -> dict[str, Any]:
        return dataclasses.asdict(write_onnx_engine(folder, checkpoint, texts))

    manifest = write_release(
        options.output,
        name=options.name or re.sub(r"[^A-Za-z0-9.-]+", "-", checkpoint.run["data"]["name"]).strip("-.") or "release",
        tokenizer_json=checkpoint.tokenizer.to_str().encode(),
        labels=checkpoint.labels,
        write_engine=write_engine,
        make_probes=lambda parity: make_probes(checkpoint, texts, parity),
        engine="onnxruntime fp32",
        max_length=checkpoint.max_length,
        checkpoint_sha256=digest,
        versions={name: version(name) for name in ("torch", "onnx", "onnxruntime", "tokenizers")},
    )
    parity = manifest.parity
    print(
        f"engine against checkpoint on {len(parity['shapes'])} shapes and {parity['texts']} held-out texts: logits within "
        f"{parity['max_abs']:.2g} (allowed {parity['bound']:g}), labels agree on {parity['label_agreement']:.2%}"
    )
    if not options.repository.exists():
        render_repository(options.repository)
        print(f"rendered the repository {options.repository}")
    print(f"wrote release {manifest.release}: {options.output}")


if __name__ == "__main__":
    run_command(lambda: build(tyro.cli(Build, prog="python -m builders.build", description=__doc__)))
