"""One server for all tests of this folder, which only read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.repository import Repository
from serving.state import ServerState
from tests.served import deployed, serving


@pytest.fixture(scope="package")
def watched_repository(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return deployed(tmp_path_factory.mktemp("watched"), release)


@pytest.fixture(scope="package")
def watched(watched_repository: Repository) -> Iterator[ServerState]:
    with serving(watched_repository) as state:
        yield state
