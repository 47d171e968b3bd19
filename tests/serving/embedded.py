"""A release of the embedded base model, for measurements: its speed is that of a fine-tuned one, its answers mean nothing."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from builders.engines import Source, find_kind, write_cpu_engine
from builders.hardware import cpu_flags
from builders.parity import make_reference
from builders.probes import make_probes
from builders.repository import write_release
from contract.command import UsageError
from contract.files import sha256_of
from training.batches import encode
from training.checkpoint import Checkpoint
from training.pretrained import EMBEDDED, WEIGHTS_FILE, find_base, load_model, load_tokenizer

WORDS = ("how", "can", "i", "sort", "a", "list", "of", "lines", "in", "this", "file", "by", "their", "length")


def embedded_release(folder: Path, *, max_length: int = 128) -> Path:
    """Write a release of the embedded model with a new head of two labels, on ONNX Runtime in fp32."""
    base = find_base(EMBEDDED)
    model, _ = load_model(base, num_labels=2, new_head=True)
    tokenizer = load_tokenizer(base, max_length=max_length)
    checkpoint = Checkpoint(base, model.eval(), tokenizer, ["no", "yes"], max_length, {})
    texts = texts_of_tokens(16, 24)
    reference = make_reference(checkpoint.model, encode(tokenizer, texts, [0] * len(texts)))
    kind = find_kind("onnxruntime", "fp32", cpu_flags())
    write_release(
        folder,
        name="embedded",
        tokenizer_json=tokenizer.to_str().encode(),
        labels=checkpoint.labels,
        write_engine=lambda target: write_cpu_engine(target, kind, Source(checkpoint.model, _no_int8), reference),
        make_probes=lambda parity: make_probes(checkpoint, [{"text": text} for text in texts], parity),
        max_length=max_length,
        checkpoint_sha256=sha256_of(base / WEIGHTS_FILE),
        versions={"tokenizers": version("tokenizers")},
    )
    return folder


def _no_int8() -> Any:
    raise UsageError("the embedded release is not quantised")


def texts_of_tokens(texts: int, tokens: int) -> list[str]:
    """Texts of about so many tokens each, of common words, no two alike."""
    return [" ".join(WORDS[(row + place) % len(WORDS)] for place in range(tokens - 2)) for row in range(texts)]
