"""How large /dev/shm must be: the python models hand their tensors over in it, and a container has 64 MB unless told.

    python -m serving.shm
    python -m serving.shm --repository build/model_repository --engine tensorrt --versions 3

Counts, for each instance of each python model, a region that holds the largest batch. A region grows when it must and never
shrinks; when /dev/shm is full, the request that needed more fails. The total is for `shm_size` in docker/compose.yaml and for
the volume of that name in docker/kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.command import UsageError, run_command
from contract.tensors import BUCKET_LENGTHS, MAX_TEXT_BYTES, TEXT

DEFAULT_REGION = 2**20
"""Bytes that the python backend takes for an instance before the first request (`shm-default-byte-size`)."""

SLACK = 2
"""A batch is copied in beside what is left of the one before; and what is freed is not in one piece."""

RELEASE_BYTES = 128
"""Of the id that every answer carries, and of its length."""

CLASSES = 1024
"""Logits of a row, when nothing says how many there are."""

_WIDTHS = {"TYPE_BOOL": 1, "TYPE_INT32": 4, "TYPE_FP32": 4}


@dataclass(frozen=True, kw_only=True)
class Shm:
    """Say how large /dev/shm must be."""

    repository: Path = Path("model_repository")
    """Model repository, committed or deployed."""
    engine: Literal["cpu", "tensorrt"] = "cpu"
    """Which config of bert_engine is served; a TensorRT plan needs no shared memory."""
    versions: int = 3
    """Versions loaded at once: the serving one, a candidate, and one that is being loaded."""

    def __post_init__(self) -> None:
        if self.versions < 1:
            raise UsageError(f"--versions is {self.versions}; it must be at least 1")
        if not (self.repository / "bert_tokenizer" / "config.pbtxt").is_file():
            raise UsageError(f"--repository is {self.repository}, which is no model repository")


@dataclass(frozen=True)
class Region:
    """What one python model needs."""

    model: str
    instances: int
    """Of one version."""
    bytes_each: int


def regions(repository: Path, engine: str) -> list[Region]:
    """One `Region` for each python model of the repository."""
    found = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        special = path.parent / "configs" / f"{engine}.pbtxt"
        config: Any = model_config_pb2.ModelConfig()
        text_format.Parse((special if special.is_file() else path).read_text(encoding="utf-8"), config)
        if config.backend == "python":
            rows = max(config.max_batch_size, 1)
            row = sum(map(row_bytes, config.input)) + sum(map(row_bytes, config.output))
            found.append(Region(config.name, sum(_counts(config)), DEFAULT_REGION + SLACK * rows * row))
    return found


def _counts(config: Any) -> Iterable[int]:
    return (max(group.count, 1) for group in config.instance_group) if config.instance_group else [1]


def row_bytes(tensor: Any) -> int:
    """Bytes of one row of a tensor, at its largest."""
    kind = model_config_pb2.DataType.Name(tensor.data_type)
    if kind == "TYPE_STRING":
        return MAX_TEXT_BYTES + 4 if tensor.name == TEXT else RELEASE_BYTES
    if kind not in _WIDTHS:
        raise UsageError(f"{tensor.name} is of {kind}; the sizes of {', '.join(_WIDTHS)} and TYPE_STRING are known")
    longest = max(BUCKET_LENGTHS[-1], CLASSES) if kind == "TYPE_FP32" else BUCKET_LENGTHS[-1]
    return _WIDTHS[kind] * max(1, *(longest if size < 0 else size for size in tensor.dims))


def needed_bytes(repository: Path, engine: str, versions: int) -> int:
    """Bytes of /dev/shm for all instances of all versions."""
    return versions * sum(region.instances * region.bytes_each for region in regions(repository, engine))


def main(options: Shm) -> None:
    """Print what each model needs, and the sum."""
    for region in regions(options.repository, options.engine):
        print(f"{region.model:20s} {region.instances} instances of {region.bytes_each / 2**20:7.1f} MiB")
    total = needed_bytes(options.repository, options.engine, options.versions)
    print(f"with {options.versions} versions loaded, /dev/shm needs {total / 2**20:.0f} MiB: shm_size: {total}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Shm, prog="python -m serving.shm", description=__doc__)))
