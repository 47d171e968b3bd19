"""What everybody who changes a deployed repository keeps to: one process at a time, and configs replaced all or none."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contract.command import Failure
from contract.files import whole_file

STARTING = "starting a server on"
"""What a server that starts holds the repository for, until it has written down where it listens."""
START_WAIT_S = 120.0


@contextmanager
def locked(repository: Path, doing: str = "publishing to", *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a repository against others who change it, and against a server that starts; for that one everybody waits.

    Args:
        doing: what for, as others are told it: another process is DOING the repository.
        wait_s: how long to wait for a publisher.

    Raises:
        Failure: another process holds it, and still after that time.
    """
    descriptor = os.open(repository / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    began, told = time.monotonic(), False
    try:
        while not _lock(descriptor):
            held_for = os.pread(descriptor, 100, 0).decode() or "working on"
            said = f"another process is {held_for} {repository}"
            if time.monotonic() - began >= (START_WAIT_S if held_for == STARTING else wait_s):
                raise Failure(f"{said}; wait until it is done")
            if not told:
                print(f"{said}; waiting", flush=True)
            told = True
            time.sleep(0.1)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, doing.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the file could be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace_configs(repository: Path, configs: Mapping[Path, bytes]) -> None:
    """Replace configs of a repository: what a full disk does not take leaves all of them as they were.

    Triton does nothing, and says 200, unless a time stamp in the model's folder has grown. The file system's clock ticks in
    milliseconds, so two quick changes can bear the same time: each one here is made later than all that is there.
    """
    models = {repository / path.relative_to(repository).parts[0] for path in configs}
    entries = [entry for model in models for entry in (model, *model.rglob("*"))]
    newest = max((max(entry.stat().st_mtime_ns, entry.stat().st_ctime_ns) for entry in entries), default=0)
    with ExitStack() as renamed:  # only when every one of them is written
        for path, text in configs.items():
            renamed.enter_context(whole_file(path)).write_bytes(text)
    stamp = max(time.time_ns(), newest + 1_000_000)
    for path in configs:
        os.utime(path, ns=(stamp, stamp))
