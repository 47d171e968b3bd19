"""A real server that the tests of this folder share; none of them changes what it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.state import ServerState
from tests.served import deployed, serving


@pytest.fixture(scope="package")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    """A real server of the tiny release."""
    with serving(deployed(tmp_path_factory.mktemp("clients"), release)) as state:
        yield state
