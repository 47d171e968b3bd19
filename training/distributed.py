"""Several processes that train one model: torch's own engine (torchrun, gloo on CPUs, NCCL on GPUs).

    torchrun --nproc-per-node 2 -m training.finetune --output build/finetuned

Every batch is the batch that one process would have trained on, its rows dealt out; so without dropout the
result is that of one process up to the order of sums. Without torchrun there is one worker, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

# Imported by DDP otherwise, while there is a group, which its default arguments would then keep. The group's threads would live
# until the interpreter is gone, and one that still holds a tensor would end the process by SIGABRT.
import torch.distributed.nn.functional
from torch import Tensor, nn

from contract.command import UsageError


@dataclass(frozen=True)
class Workers:
    """This process among all: `rank` of `count`, from 0."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and shows progress."""
        return self.rank == 0

    def share(self, rows: list[int]) -> list[int]:
        """This worker's part of `rows`, possibly empty. Every n-th row, so that rows sorted by length are dealt evenly."""
        return rows[self.rank :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the workers, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true when it is true on any worker; the same on all of them."""
        if self.count == 1:
            return list(flags)
        return [bool(total) for total in self.sum(torch.tensor([int(flag) for flag in flags])).tolist()]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors, of one shape, of all workers, by rank."""
        if self.count == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(found, tensor)
        return found

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module`, its gradients averaged over the workers in every backward."""
        if self.count == 1:
            return module
        devices = [device.index] if device.type == "cuda" else None
        # A tabular model keeps an unused head, which gets no gradient. No buffer ever changes.
        return nn.parallel.DistributedDataParallel(
            module, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False
        )


ALONE = Workers()


@contextlib.contextmanager
def join_workers() -> Iterator[Workers]:
    """The workers that torchrun started, or one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Workers(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of this worker: its own GPU by the rank that torchrun gave it on this machine, or the CPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device.index >= torch.cuda.device_count():
        raise UsageError(f"process {device.index} of this machine has no GPU: it has {torch.cuda.device_count()}; start fewer")
    torch.cuda.set_device(device)
    return device
