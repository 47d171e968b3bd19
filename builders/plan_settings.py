"""What a TensorRT plan is built with: the builder's settings, and the profiles of input shapes. Imports no TensorRT.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from builders.packed_graph import OFFSETS
from contract.command import UsageError
from contract.files import read_json
from contract.tensors import ATTENTION_MASK, FEATURES, INPUT_IDS, MAX_BATCH_SIZE

TensorRTModule = Literal["tensorrt", "tensorrt_rtx"]
HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How TensorRT builds; the graph alone says in which types it computes."""

    workspace_mib: int = 1024
    """Scratch memory that a tactic may use, MiB, at least 1: the WORKSPACE pool."""
    optimization_level: int = 3
    """Builder optimisation level, 0 (fast to build) to 5 (fast to run)."""
    timing_cache: Path | None = None
    """File of tactic timings: read when it exists, written after the build. Bound to the GPU; TensorRT-RTX keeps none."""
    hardware_compatibility: HardwareCompatibility = "none"
    """GPUs that the plan runs on beside the building one. Costs speed."""
    version_compatible: bool = False
    """Whether later TensorRT releases may load the plan too. Costs speed; the server needs version-compatible=true."""
    refittable: bool = False
    """Whether `python -m builders.refit` may replace the weights; only with one profile, and not for int8 and fp8."""
    compute_capabilities: tuple[str, ...] = ()
    """TensorRT-RTX alone: GPUs to build for, such as 8.9; without any, for the GPU at hand."""
    tf32: bool = False
    """Whether FP32 matrix products may round their inputs to TF32, as TensorRT does by default."""

    def __post_init__(self) -> None:
        if self.workspace_mib < 1:
            raise UsageError(f"--tensorrt.workspace-mib is {self.workspace_mib}; it must be at least 1")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--tensorrt.optimization-level is {self.optimization_level}; it must be 0 to 5")
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            known = ", ".join(get_args(HardwareCompatibility))
            raise UsageError(f"--tensorrt.hardware-compatibility is {self.hardware_compatibility!r}; known are {known}")
        broken = [found for found in self.compute_capabilities if not re.fullmatch(r"\d{1,2}\.\d", found)]
        if broken:
            raise UsageError(f"--tensorrt.compute-capabilities has {broken[0]!r}; write them as 8.9")


@dataclass(frozen=True)
class Profile:
    """Shapes that a plan is optimised for: each input's smallest, best and largest."""

    shapes: dict[str, tuple[Shape, Shape, Shape]]

    def __post_init__(self) -> None:
        for name, (low, best, high) in self.shapes.items():
            if not all(1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
                raise UsageError(f"the profile of {name} goes from {low} over {best} to {high}; no number may fall")

    @property
    def texts(self) -> int:
        """Texts of the largest batch."""
        return self.shapes[OFFSETS][2][0] - 1 if OFFSETS in self.shapes else self.shapes[INPUT_IDS][2][0]

    def as_json(self) -> dict[str, Any]:
        """{input: {"min": [..], "opt": [..], "max": [..]}}."""
        names = ("min", "opt", "max")
        return {
            key: {name: list(shape) for name, shape in zip(names, shapes, strict=True)} for key, shapes in self.shapes.items()
        }


def padded_profiles(
    lengths: Sequence[int], *, best_batch: int, max_batch: int = MAX_BATCH_SIZE, features: int = 0
) -> list[Profile]:
    """One profile for each rising length: from one token more than the length before it, best at the length itself."""
    _check_lengths(lengths)
    _check_batches(best_batch, max_batch)
    profiles = []
    for start, length in zip([0, *lengths], lengths, strict=False):
        shapes: tuple[Shape, Shape, Shape] = ((1, start + 1), (best_batch, length), (max_batch, length))
        inputs = dict.fromkeys((INPUT_IDS, ATTENTION_MASK), shapes)
        if features:
            inputs[FEATURES] = ((1, features), (best_batch, features), (max_batch, features))
        profiles.append(Profile(inputs))
    return profiles


def packed_profile(length: int, *, best_tokens: int, best_batch: int, max_tokens: int) -> Profile:
    """The profile of the packed graph: up to `packed_batch_size` texts of up to `length` tokens each."""
    _check_lengths([length])
    texts = packed_batch_size(length, max_tokens)
    batch, tokens = min(best_batch, texts), min(max(best_tokens, 1), texts * length)
    return Profile({INPUT_IDS: ((1,), (tokens,), (texts * length,)), OFFSETS: ((2,), (batch + 1,), (texts + 1,))})


def packed_batch_size(length: int, max_tokens: int) -> int:
    """Texts in one packed batch: as many of the longest as `max_tokens` hold, for Triton counts texts and not tokens."""
    if max_tokens < length:
        raise UsageError(f"--tensorrt.packed-tokens is {max_tokens}; one text alone may have {length} tokens")
    return min(MAX_BATCH_SIZE, max_tokens // length)


def read_lengths(path: Path, max_length: int) -> tuple[list[int], int]:
    """(lengths, best batch) of a length plan. Raises UsageError when it is none, or ends before `max_length`."""
    value = read_json(path)
    try:
        lengths, best_batch = [int(length) for length in value["lengths"]], int(value["best_batch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no length plan ({error!r}); python -m builders.plan_lengths writes one") from error
    if not lengths or lengths[-1] != max_length:
        raise UsageError(f"{path} reaches to {lengths[-1:]} tokens, the checkpoint reads {max_length}; plan again")
    return lengths, best_batch


def _check_lengths(lengths: Sequence[int]) -> None:
    if not lengths or lengths[0] < 1 or any(a >= b for a, b in pairwise(lengths)):
        raise UsageError(f"the profile lengths are {list(lengths)}; they must rise and be at least 1")


def _check_batches(best: int, largest: int) -> None:
    if not 1 <= best <= largest:
        raise UsageError(f"the best batch size is {best}, the largest {largest}; wanted 1 <= best <= largest")
