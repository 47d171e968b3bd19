"""Addresses at which nobody answers: one where nobody listens, one where somebody listens and says nothing."""

from __future__ import annotations

import atexit
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def closed_url() -> str:
    """An address at which nobody listens. It stays bound until the process ends, so that nobody else comes to listen there."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    atexit.register(holder.close)
    return f"127.0.0.1:{holder.getsockname()[1]}"


@contextmanager
def silent_url() -> Iterator[str]:
    """The address of a socket that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"
