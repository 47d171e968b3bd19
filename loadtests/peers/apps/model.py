"""The model as most people serve it: transformers' text-classification pipeline over a Hugging Face folder.

Settings come from the environment, since every framework starts its workers in its own way.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import torch
from transformers import AutoTokenizer, pipeline


class TextClassifier:
    """Texts in, labels out."""

    def __init__(self) -> None:
        """Load PEER_MODEL in PEER_DTYPE (float32 or bfloat16) on PEER_THREADS threads."""
        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        self._one_call = threading.Lock()  # the tokenizer refuses a second thread, and two calls would share the same cores
        folder = os.environ["PEER_MODEL"]
        self._pipeline: Any = pipeline(
            "text-classification",
            model=folder,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
            dtype=getattr(torch, os.environ["PEER_DTYPE"]),
        )

    def classify(self, texts: list[str]) -> list[str]:
        """The label of each text, all of them in one batch, cut to what the model reads."""
        with self._one_call, torch.inference_mode():
            answers = self._pipeline(texts, batch_size=len(texts), truncation=True)
        return [str(answer["label"]) for answer in answers]


def max_batch() -> int:
    """Texts that one call of the model takes at most."""
    return int(os.environ["PEER_MAX_BATCH"])


def max_wait_s() -> float:
    """How long a batch waits for more texts, in seconds."""
    return float(os.environ["PEER_MAX_WAIT_MS"]) / 1000
