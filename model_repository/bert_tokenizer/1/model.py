"""Triton python model: texts -> padded token ids, with a flag for texts that were cut and the release that answers.

Needs tokenizers and numpy only. Every request is answered on its own: a bad text fails its request, never its neighbours.

Shapes: B texts of a request, T tokens, padded to a bucket length.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from tokenizers import Encoding, Tokenizer


def decode_texts(raw: npt.NDArray[np.object_], max_bytes: int) -> list[str]:
    """[B, 1] of bytes -> B strings. Raises ValueError naming the first text that cannot be classified."""
    texts = []
    for number, value in enumerate(raw.ravel()):
        if len(value) > max_bytes:
            raise ValueError(f"text {number} has {len(value)} bytes; at most {max_bytes} are allowed: shorten it")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"text {number} is not valid UTF-8: {error}") from error
        if not text.strip():
            raise ValueError(f"text {number} is empty: there is nothing to classify")
        texts.append(text)
    return texts


def padded_length(longest: int, buckets: list[int], max_length: int) -> int:
    """The smallest bucket that holds `longest` tokens; never beyond what the model reads."""
    return min(next((bucket for bucket in buckets if bucket >= longest), longest), max_length)


def to_arrays(
    encodings: list[Encoding], length: int, pad_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """(input_ids [B, T], attention_mask [B, T], truncated [B, 1]) of one request, padded on the right to `length`."""
    ids = np.full((len(encodings), length), pad_id, dtype=np.int32)
    mask = np.zeros((len(encodings), length), dtype=np.int32)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    truncated = np.array([[bool(encoding.overflowing)] for encoding in encodings], dtype=np.bool_)
    return ids, mask, truncated


class TritonPythonModel:
    """What Triton's stub loads; see the module docstring."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer and the release id of this version."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(
                f"numpy {np.__version__}: the stub of Triton 2.51 corrupts tensors with numpy 2; install numpy<2"
            )
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread pool for a 60 us task costs the engine its cores
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters: dict[str, Any] = json.loads(args["model_config"])["parameters"]
        self.buckets = [int(length) for length in parameters["bucket_lengths"]["string_value"].split(",")]
        self.max_bytes = int(parameters["max_text_bytes"]["string_value"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if self.tokenizer.truncation is None:
            raise ValueError(f"{folder / 'tokenizer.json'} sets no truncation, so it is not the one that training wrote")
        self.max_length = int(self.tokenizer.truncation["max_length"])
        self.pad_id = self.tokenizer.token_to_id("[PAD]") or 0  # masked out, so any id that exists will do
        self.release = json.loads((folder / "release.json").read_text(encoding="utf-8"))["release"].encode()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Tokenize the texts of all requests in one call; one response a request, in order."""
        accepted: list[list[str] | ValueError] = []
        for request in requests:
            try:
                accepted.append(decode_texts(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy(), self.max_bytes))
            except ValueError as error:
                accepted.append(error)
        encodings = iter(
            self.tokenizer.encode_batch_fast([text for texts in accepted if isinstance(texts, list) for text in texts])
        )
        return [
            pb_utils.InferenceResponse(error=pb_utils.TritonError(str(texts), pb_utils.TritonError.INVALID_ARG))
            if isinstance(texts, ValueError)
            else self.respond([next(encodings) for _ in texts])
            for texts in accepted
        ]

    def respond(self, encodings: list[Encoding]) -> pb_utils.InferenceResponse:
        """The response to one request."""
        longest = max(len(encoding.ids) for encoding in encodings)
        ids, mask, truncated = to_arrays(encodings, padded_length(longest, self.buckets, self.max_length), self.pad_id)
        release = np.full((len(encodings), 1), self.release, dtype=object)
        tensors = {"input_ids": ids, "attention_mask": mask, "truncated": truncated, "release": release}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])
