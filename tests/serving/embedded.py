"""A release of the embedded base model, for measurements: its speed is that of a fine-tuned one, its answers mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders.onnx_export import build_onnx
from builders.repository import write_release
from contract.files import sha256_of, write_bytes
from training.pretrained import EMBEDDED, WEIGHTS_FILE, find_base, load_model, load_tokenizer

WORDS = ("how", "can", "i", "sort", "a", "list", "of", "lines", "in", "this", "file", "by", "their", "length")


def embedded_release(folder: Path, *, max_length: int = 128) -> Path:
    """Write a release of the embedded model with a new head of two labels."""
    base = find_base(EMBEDDED)
    model, _ = load_model(base, num_labels=2, new_head=True)

    def write_engine(target: Path) -> dict[str, Any]:
        write_bytes(target / "model.onnx", build_onnx(model.eval()).SerializeToString())
        return {}

    write_release(
        folder,
        name="embedded",
        tokenizer_json=load_tokenizer(base, max_length=max_length).to_str().encode(),
        labels=["no", "yes"],
        write_engine=write_engine,
        engine="onnxruntime fp32",
        max_length=max_length,
        checkpoint_sha256=sha256_of(base / WEIGHTS_FILE),
        versions={},
    )
    return folder


def texts_of_tokens(texts: int, tokens: int) -> list[str]:
    """Texts of about so many tokens each, of common words, no two alike."""
    return [" ".join(WORDS[(row + place) % len(WORDS)] for place in range(tokens - 2)) for row in range(texts)]
