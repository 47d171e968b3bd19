"""`serving.control` and what an undone change says when the server has died over it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from serving.control import ModelControl
from serving.deployment import Deployment
from serving.repository import Repository
from serving.state import ServerState


@pytest.fixture
def dying() -> Iterator[str]:
    """The address of a server that ends with every request that it has read."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_server_that_dies_over_a_load_is_a_failure_with_its_name(dying: str) -> None:
    state = ServerState(pid=1, grpc_url=dying, http_url=dying, metrics_url=dying, control_token="t")
    with ModelControl(state) as control:
        with pytest.raises(Failure, match=f"the server at {dying} could not load bert_engine"):
            control.load("bert_engine")
        with pytest.raises(Failure, match=f"the server at {dying} does not say whether bert_engine 1 is ready"):
            control.is_ready("bert_engine", 1)


@pytest.mark.parametrize(
    ("error", "reason"), [(UsageError("it agrees on 10 %"), "it agrees on 10 %"), (KeyboardInterrupt(), "KeyboardInterrupt")]
)
def test_the_reason_of_an_undone_change_is_kept_when_the_server_cannot_be_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, reason: str
) -> None:
    deployment = Deployment(Repository(tmp_path), None)

    def undo(self: Deployment, configs: dict[Path, bytes], version: int | None) -> None:
        raise Failure("connection refused")

    monkeypatch.setattr(Deployment, "undo", undo)
    with pytest.raises(Failure, match=f"^{reason}; and the server could not be told to go back: connection refused") as raised:
        deployment.undo_after(error, {}, None)
    assert raised.value.__cause__ is error
