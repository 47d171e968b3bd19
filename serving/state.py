"""Where a running server listens and how its operator controls it: `.server.json` in the repository it serves.

The file holds the token of the model-control API, so only its owner may read it. It is there exactly as long as the server.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from contract.files import read_json, write_json
from serving.stubs import read_start

STATE_FILE = ".server.json"
CONTROL_HEADER = "triton-control"


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """One running server."""

    pid: int
    """Of the supervising `python -m serving`."""
    pid_started: int = 0
    """`serving.stubs.read_start` of it, as numbers are used again; 0: not known."""
    grpc_url: str
    http_url: str
    metrics_url: str
    control_token: str
    """Value of the `triton-control` header, without which model control is refused."""
    features: int = 0
    """Numbers that every release of the repository reads beside each text."""

    def write(self, repository: Path) -> None:
        """Write the state file, readable by its owner alone."""
        write_json(repository / STATE_FILE, dataclasses.asdict(self), mode=0o600)


def read_state(repository: Path, *, elsewhere: bool = False) -> ServerState | None:
    """The server that serves `repository`; None when there is none, or its process is gone.

    Args:
        elsewhere: it runs on another machine or in another container, where its process cannot be seen from here.
    """
    path = repository / STATE_FILE
    if not path.exists():
        return None
    state = ServerState(**read_json(path))
    return state if elsewhere or _runs(state) else None


def _runs(state: ServerState) -> bool:
    """Whether the supervisor does, and its number is not that of a later process."""
    try:
        os.kill(state.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    return state.pid_started == 0 or read_start(state.pid) in {None, state.pid_started}


def remove_state(repository: Path) -> None:
    """Forget the server."""
    (repository / STATE_FILE).unlink(missing_ok=True)
