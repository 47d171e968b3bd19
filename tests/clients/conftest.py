"""What the tests of this folder share: a real server, which none of them changes, and one in memory for `clients.score`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clients.score
from clients import AsyncClassifier, RetryPolicy
from serving.state import ServerState
from tests.clients.async_memory import AsyncMemoryTransport
from tests.clients.scored import Serve
from tests.served import deployed, serving


@pytest.fixture(scope="package")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A real server of the tiny release."""
    with serving(deployed(tmp_path_factory.mktemp("clients"), release)) as state:
        yield state


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Lets the command meet a transport in memory, which the call returns."""

    def start(**options: Any) -> AsyncMemoryTransport:
        transport = AsyncMemoryTransport(**options)

        def connect(*, url: str, protocol: str, model: str, tls: None, **rest: Any) -> AsyncClassifier:
            return AsyncClassifier(transport, **rest | {"retry": RetryPolicy(attempts=1)})

        monkeypatch.setattr(clients.score, "connect_async", connect)
        return transport

    return start
