"""A server that every read-only test shares, and its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.state import ServerState
from tests.served import deployed, serving
from training.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="session")
def checkpoint(merged: Path) -> Checkpoint:
    """What the server must answer like."""
    return load_checkpoint(merged)


@pytest.fixture(scope="package")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A real server that serves `release`. Tests that change what it serves start their own."""
    with serving(deployed(tmp_path_factory.mktemp("shared"), release)) as state:
        yield state
