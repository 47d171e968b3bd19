"""One server and one proxy for all tests of this folder; both must be the same processes at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.repository import Repository
from serving.state import ServerState
from tests.security.behind import Proxied, proxying, tritonserver
from tests.served import deployed, serving


@pytest.fixture(scope="package")
def hardened_repository(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return deployed(tmp_path_factory.mktemp("hardened"), release)


@pytest.fixture(scope="package")
def hardened(hardened_repository: Repository) -> Iterator[ServerState]:
    with serving(hardened_repository) as state:
        before = tritonserver(state)
        yield state
        assert tritonserver(state) == before, "a test of this folder ended the server"


@pytest.fixture(scope="package")
def proxied(hardened: ServerState, hardened_repository: Repository) -> Iterator[Proxied]:
    with proxying(hardened_repository.path, hardened, "--rate", "100000") as proxy:
        yield proxy
