"""Triton python model: token ids -> logits, by ONNX Runtime on the CPU.

The batcher hands over requests of different lengths together. Their rows are pooled, stripped of padding, sorted by length
and run in groups of nearly equal length, so that the cores compute tokens, not padding.

Shapes: B rows of a request, T its padded length, C classes.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

MAX_PADDING = 0.1  # of a group's tokens: more groups mean less padding and more calls; a call costs about a tenth of a row
MAX_TOKENS = 4096  # of a group: beyond this a larger batch is no faster and only holds more memory

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


def group_rows(lengths: list[int]) -> list[list[int]]:
    """Cut the rows, longest last, into groups with at most `MAX_PADDING` padding and `MAX_TOKENS` tokens."""
    groups: list[list[int]] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        tokens += lengths[row]
        area = (len(groups[-1]) + 1) * lengths[row] if groups else 0
        if groups and area <= MAX_TOKENS and area - tokens <= MAX_PADDING * area:
            groups[-1].append(row)
        else:
            groups.append([row])
            tokens = lengths[row]
    return groups


def pack_group(rows: list[Int32], length: int) -> tuple[Int32, Int32]:
    """Unpadded rows -> (input_ids, attention_mask), both [rows, length]."""
    ids = np.zeros((len(rows), length), dtype=np.int32)
    mask = np.zeros((len(rows), length), dtype=np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask


def strip_padding(ids: Int32, mask: Int32) -> list[Int32]:
    """[B, T] -> B rows without their padding. Raises ValueError for a mask that is not ones followed by zeros, at least one."""
    lengths = mask.sum(axis=1)
    if ids.shape != mask.shape or (lengths < 1).any() or not np.array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None]):
        raise ValueError("attention_mask must have the shape of input_ids and, in each row, ones and then zeros")
    return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def open_progress(version: str) -> npt.NDArray[np.float64]:
    """Start, tokens and seconds so far, end of the last call: what the tokenizer of this version reads, to refuse in time."""
    prefix = os.environ.get("BERT_SHM_PREFIX")
    if not prefix:
        return np.zeros(4)
    path = Path("/dev/shm") / f"{prefix}progress_{version}"  # noqa: S108 - POSIX shared memory, removed with the server
    with path.open("ab") as file:
        file.truncate(32)
    return np.asarray(np.memmap(path, np.float64, "r+", shape=4))


class TritonPythonModel:
    """What Triton's stub loads; see the module docstring."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the ONNX file of this version."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(
                f"numpy {np.__version__}: the stub of Triton 2.51 corrupts tensors with numpy 2; install numpy<2"
            )
        parameters: dict[str, Any] = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"]) or len(os.sched_getaffinity(0))
        # Threads that spin between requests starve server and tokenizer: on 2 cores p99 went from 20 to 517 ms.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.progress = open_progress(args["model_version"])
        self.progress[:] = (time.monotonic(), 0.0, 0.0, time.monotonic())

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """One response a request, in order; when a joint run fails, each request is run alone, to fail by itself."""
        inputs = [
            tuple(pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("input_ids", "attention_mask"))
            for request in requests
        ]
        self.progress[3], began = np.inf, time.monotonic()
        try:
            answers = self.run([strip_padding(ids, mask) for ids, mask in inputs])
        except Exception as error:  # ONNX Runtime has no narrower base for what a run may raise
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))]
        finally:
            self.progress[1] += sum(int(mask.sum()) for _, mask in inputs)
            self.progress[2] += time.monotonic() - began
            self.progress[3] = time.monotonic()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)]) for logits in answers]

    def run(self, requests: list[list[Int32]]) -> list[Float32]:
        """The unpadded rows of each request -> its logits [B, C]."""
        rows = [row for request in requests for row in request]
        lengths = [len(row) for row in rows]
        logits: list[Float32] = [np.empty(0, np.float32)] * len(rows)
        for group in group_rows(lengths):
            ids, mask = pack_group([rows[row] for row in group], lengths[group[-1]])
            (answers,) = self.session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
            for row, answer in zip(group, answers, strict=True):
                logits[row] = answer
        remaining = iter(logits)
        return [np.stack([next(remaining) for _ in request]) for request in requests]
