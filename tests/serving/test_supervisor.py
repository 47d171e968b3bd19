"""`serving.supervisor` and `serving.events`: pauses, giving up, what is written down. The real server: test_server.py."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from contract.command import Failure
from contract.tensors import ENGINE
from serving import events
from serving.events import EventLog, events_path
from serving.launch import Installation
from serving.process import ServerProcess
from serving.repository import Repository
from serving.state import ServerState
from serving.supervisor import LONGEST_PAUSE_S, Limits, Supervisor, pause_s
from tests.served import deployed

STATE = ServerState(pid=1, grpc_url="127.0.0.1:9", http_url="127.0.0.1:9", metrics_url="127.0.0.1:9", control_token="x")
LIMITS = Limits(start_timeout_s=240, patience_s=60, python_steps=(), restarts=3)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pauses_double_and_are_bounded() -> None:
    pauses = [pause_s(ends) for ends in range(1, 40)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


def test_a_first_server_that_does_not_come_up_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    said = Installation(Path(sys.executable), ["-c", "print('failed to load: no such thing'); raise SystemExit(3)"])

    def start() -> ServerProcess:
        return ServerProcess(said, [], log=log, shm_prefix="bert_test_none_", environment={})

    supervisor = Supervisor(Repository(tmp_path), STATE, start, LIMITS, EventLog(events_path(log)))
    with pytest.raises(Failure, match=r"ended with code 3(.|\n)*failed to load: no such thing"):
        supervisor.run(lambda release: pytest.fail("nothing answers"))
    assert [line["event"] for line in lines(tmp_path / "server.events.jsonl")] == ["server-started"]
    assert not (tmp_path / ".server.json").exists()


def test_another_server_is_offered_whole_versions_only(tmp_path: Path, release: Path, second_release: Path) -> None:
    repository = deployed(tmp_path, release, second_release)
    (repository.path / ENGINE / "1" / "model.onnx").write_bytes(b"")

    def start() -> ServerProcess:
        raise Failure(f"started with {repository.offered()}")

    supervisor = Supervisor(repository, STATE, start, LIMITS, EventLog(tmp_path / "events.jsonl"))
    supervisor._ends, supervisor._announced = 1, True
    with repository.locked(), pytest.raises(Failure, match=re.escape("started with [1, 2]")):  # a publisher is at work
        supervisor._serve(lambda release: None)
    with pytest.raises(Failure, match=re.escape("started with [2]")):
        supervisor._serve(lambda release: None)
    told = [(line["event"], line.get("version")) for line in lines(tmp_path / "events.jsonl")]
    assert told == [("versions-not-checked", None), ("version-damaged", 1)]


def test_it_gives_up_after_so_many_ends_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    supervisor = Supervisor(Repository(tmp_path), STATE, lambda: pytest.fail("not started"), LIMITS, log)
    waited: list[float] = []
    monkeypatch.setattr("serving.supervisor.time.sleep", waited.append)
    monkeypatch.setattr(supervisor, "_serve", lambda announce: "it ended")
    with pytest.raises(Failure, match="gave up after 3 restarts in a row, the last because: it ended"):
        supervisor.run(lambda release: None)
    assert waited == [0.2, 0.4, 0.8]


def test_the_event_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(events, "MAX_BYTES", 300)
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(20):
        log.write("tested", number=number)
    kept = [*lines(tmp_path / "events.jsonl.1"), *lines(tmp_path / "events.jsonl")]
    assert [line["number"] for line in kept] == list(range(20))[-len(kept) :]
    assert all((tmp_path / name).stat().st_size < 500 for name in ("events.jsonl", "events.jsonl.1"))
    assert "tested number=19" in capsys.readouterr().err


def test_an_event_that_cannot_be_written_is_said_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EventLog(tmp_path / "absent" / "events.jsonl").write("tested", number=1)
    assert "tested number=1 not_in_the_file=[Errno 2]" in capsys.readouterr().err


def test_an_event_after_a_torn_one_stands_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "stub-dea')  # the disk was full within the line
    EventLog(path).write("tested", number=1)
    EventLog(path).write("tested", number=2)
    assert [event["number"] for event in events.read_events(path)] == [1, 2]
    assert events.read_events(tmp_path / "absent") == []
