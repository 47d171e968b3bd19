"""nginx in front of a server, as `python -m serving.proxy` puts it there; and what is behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from serving.state import ServerState
from tests.served import stop

NO_NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") is None
needs_nginx = pytest.mark.skipif(NO_NGINX, reason="nginx is not installed: apt-get install nginx")


@dataclass(frozen=True)
class Proxied:
    """Where the proxy listens, and what it stands in front of."""

    http_url: str
    grpc_url: str
    state: ServerState
    pid: int


def proxy_command(repository: Path, *arguments: str) -> list[str]:
    """`python -m serving.proxy` on free ports."""
    ports = ("--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0")
    return [sys.executable, "-m", "serving.proxy", "--repository", str(repository), *ports, *arguments]


@contextmanager
def proxying(repository: Path, state: ServerState, *arguments: str) -> Iterator[Proxied]:
    """A proxy for as long as the block lasts; it must end with code 0 when told to stop."""
    with tempfile.TemporaryFile("w+") as log:  # no pipe: nginx would stand still once nobody has emptied it
        command = proxy_command(repository, *arguments)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        words = process.stdout.readline().split()  # HTTP host:port gRPC host:port ...
        try:
            assert len(words) > 3, "the proxy did not start"
            yield Proxied(words[1], words[3], state, process.pid)
        finally:
            stop(process)
            log.seek(0)
            assert process.returncode == 0, log.read()[-5000:]


def pretended(folder: Path, *, http: str, grpc: str) -> ServerState:
    """The state file of a server that is this process's own sockets at these addresses."""
    folder.mkdir(exist_ok=True)
    state = ServerState(pid=os.getpid(), grpc_url=grpc, http_url=http, metrics_url="127.0.0.1:1", control_token="t" * 32)
    state.write(folder)
    return state


def tritonserver(state: ServerState) -> int:
    """Process id of the tritonserver below its supervisor: another one after a crash, however quickly it came back."""
    (found,) = [child.pid for child in psutil.Process(state.pid).children() if child.name() == "tritonserver"]
    return int(found)
