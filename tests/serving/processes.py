"""The processes, memory and descriptors of a supervised server, as tests look at them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from contract.tensors import CLASSIFIER
from serving.probe import OK, infer
from serving.process import SHARED_MEMORY
from serving.state import ServerState
from serving.stubs import STOPPED, ZOMBIE, Stub, child_pids, find_children, read_status

LIMIT_S = 120.0


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> float:
    """Seconds until `condition` came true; an AssertionError when it did not in time."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit_s:
            raise AssertionError(f"after {limit_s:g} s still not: {what}")
        time.sleep(0.02)
    return time.monotonic() - started


def server_pid(state: ServerState) -> int | None:
    """The tritonserver below a supervisor; None while there is none."""
    for pid in child_pids(state.pid):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
        except OSError:
            continue
        status = read_status(pid)
        if Path(name).name == "tritonserver" and status is not None and status[0] != ZOMBIE:
            return pid
    return None


def stub_of(state: ServerState, model: str) -> Stub | None:
    """A living stub of `model` that is not stopped."""
    server = server_pid(state)
    stubs = find_children(server).stubs if server else ()
    return next((stub for stub in stubs if stub.model == model and stub.state != STOPPED), None)


def answers(state: ServerState, timeout_s: float = 5.0) -> bool:
    """Whether one request to the classifier is answered in time, without any retry."""
    return infer(state.http_url, CLASSIFIER, None, timeout_s).status == OK


def leftovers(state: ServerState) -> list[str]:
    """Shared memory of this server that no living stub uses."""
    server = server_pid(state)
    used = {stub.region for stub in find_children(server).stubs} if server else set()
    found = {path.name for path in SHARED_MEMORY.glob(f"bert_{state.pid}_*") if "_progress_" not in path.name}
    return sorted(found - used)


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def pss_kib(pid: int) -> int:
    """Proportional set size of a process in KiB: its own memory, and its share of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError(f"/proc/{pid}/smaps_rollup has no Pss")


def family_pss_mb(pid: int) -> float:
    """Proportional set size of a process and all below it, MB."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
    return own + sum(map(family_pss_mb, child_pids(pid)))
