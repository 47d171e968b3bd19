"""The python stubs of a tritonserver, as /proc shows them: one process for each instance of each version of a python model.

Server 2.51 neither restarts a stub nor says that one is gone, but the kernel does, at once and whatever the load.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = "triton_python_backend_stub"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ZOMBIE = "Z"
STOPPED = "T"
AWAKE = "RD"


@dataclass(frozen=True, kw_only=True)
class Stub:
    """One living stub."""

    pid: int
    model: str
    version: int
    state: str
    """The kernel's letter: R runs, S sleeps, D waits for a disk, T was stopped by a signal."""
    cpu_s: float
    """CPU time used so far, all threads together."""
    region: str
    """Name of its shared memory below /dev/shm."""


@dataclass(frozen=True, kw_only=True)
class Children:
    """What a tritonserver has started."""

    stubs: tuple[Stub, ...]
    dead: int
    """Ended stubs that the server has not taken note of. It holds the instance of each until it ends itself."""


def find_children(server: int) -> Children:
    """The children of the process `server`; none when it is gone."""
    stubs, dead = [], 0
    for pid in child_pids(server):
        status = read_status(pid)
        if status is None:
            continue
        state, cpu_s = status
        if state == ZOMBIE:
            dead += 1
        elif (command := _command(pid)) and Path(command[0]).name == _PROGRAM:
            path = Path(command[1])  # REPOSITORY/MODEL/VERSION/model.py
            stubs.append(
                Stub(
                    pid=pid,
                    model=path.parent.parent.name,
                    version=int(path.parent.name),
                    state=state,
                    cpu_s=cpu_s,
                    region=command[2],
                )
            )
    return Children(stubs=tuple(stubs), dead=dead)


def read_status(pid: int) -> tuple[str, float] | None:
    """(state letter, CPU seconds) of a process; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # gone, between two reads too
        return None
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def read_start(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did: with its number, who it is. None where that is not seen."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def is_awake(pid: int) -> bool:
    """Whether a thread of a process runs, waits for a core (also where a quota holds it back), or waits for a disk."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            state = path.read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # the thread ended meanwhile
        if state in AWAKE:
            return True
    return False


def child_pids(pid: int) -> list[int]:
    """The children of a process, whichever of its threads started them."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue  # the thread ended meanwhile; its children have moved to another one
    return sorted(set(found))


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []
