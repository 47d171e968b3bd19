"""`python -m serving.status`: on a real server, and the reading of Prometheus' text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import connect
from contract.command import Failure, UsageError
from serving.repository import Repository
from serving.state import ServerState
from serving.status import Reading, Status, parse_metrics, read_server, status, total
from tests.served import deployed, serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, release: Path) -> Iterator[tuple[Repository, ServerState]]:
    repository = deployed(tmp_path_factory.mktemp("status"), release)
    with serving(repository) as state:
        yield repository, state


def test_metrics_are_read_with_their_labels() -> None:
    text = '# HELP a b\n# TYPE a counter\na{model="m",version="1"} 3\na{model="n",version="1"} 4.5\nb 1e3\n\nbroken line here\n'
    metrics = parse_metrics(text)
    assert len(metrics) == 3
    assert total(metrics, "a") == 7.5
    assert total(metrics, "a", model="n") == 4.5
    assert total(metrics, "a", version="1", model="m") == 3
    assert total(metrics, "a", version="2") == 0
    assert total(metrics, "b") == 1000


@pytest.mark.server
def test_one_screen_of_a_real_server(served: tuple[Repository, ServerState]) -> None:
    repository, state = served
    with connect(state.grpc_url) as classifier:
        classifier.classify(["the cat sleeps"] * 100)
    command = [sys.executable, "-m", "serving.status", "--repository", str(repository.path), "--once"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{repository.release(1)} serves as version 1 of [1]   answers")
    assert state.grpc_url in first
    for wanted in ("bert_tokenizer ", "bert_engine ", "texts/s", "refused 0.0/s overloaded", "tritonserver ", "server-answers"):
        assert any(wanted in line for line in rest), (wanted, done.stdout)
    assert sum(" process " in line and " MiB" in line for line in rest) == 2


@pytest.mark.server
def test_the_screen_outlives_a_restart_of_the_server(
    served: tuple[Repository, ServerState], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, state = served
    one = read_server(state)
    other = [dataclasses.replace(one, server=0, metrics={}, at_s=one.at_s + seconds) for seconds in (1, 2)]
    readings: Iterator[Reading | BaseException] = iter([one, Failure("is it starting again?"), *other, KeyboardInterrupt()])

    def read(_: ServerState) -> Reading:
        reading = next(readings)
        if isinstance(reading, BaseException):
            raise reading
        return reading

    monkeypatch.setattr("serving.status.read_server", read)
    with pytest.raises(KeyboardInterrupt):
        status(Status(repository=repository.path, every_s=0.2))
    said, *screen = capsys.readouterr().out.splitlines()
    assert said == "is it starting again?"
    assert "-" not in "".join(line.partition("requests/s")[0] for line in screen if "requests/s" in line)
    assert sum("serves as version 1" in line for line in screen) == 1


def test_without_a_server_the_next_step_is_named(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    with pytest.raises(UsageError, match=r"no server serves .*python -m serving --repository"):
        status(Status(repository=repository.path, once=True))
