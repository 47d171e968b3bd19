"""`python -m serving`: starting, refusing to start, and leaving nothing behind."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import connect
from contract.command import Failure, UsageError
from contract.files import read_json_lines
from contract.release import read_manifest
from contract.repository import STARTING
from contract.tensors import CANDIDATE, ENGINE, TOKENIZER
from serving.__main__ import check_servable, claim_ports
from serving.probe import OK, infer
from serving.publish import publish
from serving.state import STATE_FILE, ServerState, read_state
from serving.stubs import ZOMBIE, child_pids, find_children, read_start, read_status
from tests.served import deployed, serving, start, stop, wait_until_served
from tests.serving.chaos_kill import ChaosKill, check, hangable, measure
from tests.serving.faults import variant, vouch
from tests.serving.processes import LIMIT_S, answers, leftovers, server_pid, wait_for
from tests.serving.traffic import ANY

pytestmark = pytest.mark.server


def descendants(pid: int) -> set[int]:
    """The processes below `pid`, as /proc has them."""
    children = child_pids(pid)
    return set(children).union(*map(descendants, children))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    status = read_status(pid)
    return status is not None and status[0] != ZOMBIE


def shared_memory(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"bert_{pid}_*"))  # noqa: S108 - POSIX shared memory


def test_a_stopped_server_leaves_no_process_no_shared_memory_and_no_state(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    process = start(repository)
    wait_until_served(process, repository)
    family = descendants(process.pid)
    assert len(family) >= 3  # tritonserver and two stubs
    assert shared_memory(process.pid)
    stop(process)
    assert process.returncode == 0
    assert [pid for pid in family if alive(pid)] == []
    assert shared_memory(process.pid) == []
    assert not (repository.path / STATE_FILE).exists()


def test_a_killed_supervisor_takes_its_server_along(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    process = start(repository)
    wait_until_served(process, repository)
    family = descendants(process.pid)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    wait_for(lambda: not any(map(alive, family)), "the end of the server and its stubs")
    for path in shared_memory(process.pid):  # a few KB that nobody is left to remove
        path.unlink()
    assert read_state(repository.path) is None  # the file is still there, its process is not
    with serving(repository):  # and so it does not stand in the way
        pass


def test_in_a_container_the_file_of_a_killed_server_bears_our_own_number(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    urls: dict[str, Any] = {f"{name}_url": "127.0.0.1:9" for name in ("grpc", "http", "metrics")}
    ServerState(pid=os.getpid(), control_token="x", **urls).write(repository.path)
    check_servable(repository)
    ServerState(pid=os.getppid(), control_token="x", **urls).write(repository.path)
    with pytest.raises(UsageError, match="is served already"):
        check_servable(repository)


def test_a_file_whose_number_another_process_bears_now_stands_in_nobody_s_way(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    urls: dict[str, Any] = {f"{name}_url": "127.0.0.1:9" for name in ("grpc", "http", "metrics")}
    began = read_start(os.getppid())
    assert began is not None
    state = ServerState(pid=os.getppid(), pid_started=began, control_token="x", **urls)
    state.write(repository.path)
    assert read_state(repository.path) == state
    dataclasses.replace(state, pid_started=began - 1).write(repository.path)
    assert read_state(repository.path) is None
    check_servable(repository)
    (tmp_path / "model_repository.log").write_text("why the last one ended\n")
    with serving(repository) as served:
        assert served.pid_started == read_start(served.pid)
    assert (tmp_path / "model_repository.log.1").read_text() == "why the last one ended\n"


def test_a_killed_server_is_started_again_on_the_same_ports(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    with serving(repository) as state:
        first = server_pid(state)
        assert first is not None
        assert b"MALLOC_ARENA_MAX=2" in Path(f"/proc/{first}/environ").read_bytes().split(b"\0")
        family = descendants(first)
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: server_pid(state) not in {None, first}, "another server")
        wait_for(lambda: answers(state), "an answer of the other server")
        assert read_state(repository.path) == state
        wait_for(lambda: not any(map(alive, family)), "the end of the first server's stubs")
        wait_for(lambda: not leftovers(state), "no shared memory of the first server")
    told = [line["event"] for line in read_json_lines(tmp_path / "model_repository.events.jsonl")]
    assert [event for event in told if event.startswith("server-")][:5] == [
        "server-started",
        "server-answers",
        "server-ended",
        "server-restart",
        "server-started",
    ]
    assert told[-2:] == ["draining", "stopped"]


def fails_when_told(release: Path, target: Path, flag: Path) -> Path:
    """A release that is in order until the file `flag` exists; from then on its engine raises when a server loads it."""
    variant(release, target, name="fails-when-told", shift=0.5)
    model = target / ENGINE / "model.py"
    told = f"os.path.exists({str(flag)!r}) and 'rehearsed' not in sys.argv[0]"
    raising = f"\nimport os, sys\nif {told}:\n    raise ValueError('as told')\n"
    model.write_text(model.read_text(encoding="utf-8") + raising, encoding="utf-8")
    return vouch(target)


@pytest.mark.parametrize("when", ["at the first start", "at a restart"])
def test_a_candidate_that_loads_no_more_keeps_no_server_from_starting(tmp_path: Path, release: Path, when: str) -> None:
    flag = tmp_path / "flag"
    repository = deployed(tmp_path, release)
    publish(fails_when_told(release, tmp_path / "fails", flag), repository, stage=True)
    if when == "at the first start":
        flag.touch()
    with serving(repository) as state:
        if not flag.exists():
            assert (repository.offered(), repository.candidate()) == ([1, 2], 2)
            flag.touch()
            os.kill(server_pid(state) or 0, signal.SIGKILL)
            wait_for(lambda: not answers(state), "the end of the server")
        wait_for(lambda: answers(state), "an answer")
        assert infer(state.http_url, CANDIDATE, None, LIMIT_S).status == OK
        assert (repository.offered(), repository.candidate(), repository.versions()) == ([1], None, [1, 2])
    told = list(read_json_lines(tmp_path / "model_repository.events.jsonl"))
    assert [line["version"] for line in told if line["event"] == "version-left-out"] == [2]


def test_one_of_two_instances_that_dies_is_replaced(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    for config in (repository.path / TOKENIZER / "config.pbtxt", repository.path / ENGINE / "configs" / "cpu.pbtxt"):
        config.write_text(config.read_text().replace("count: 1", "count: 2"))

    def stubs(state: ServerState, model: str) -> set[int]:
        return {stub.pid for stub in find_children(server_pid(state) or 0).stubs if stub.model == model}

    with serving(repository) as state:
        shared = np.fromfile(f"/dev/shm/bert_{state.pid}_progress_1").reshape(-1, 6)  # noqa: S108 - POSIX shared memory
        assert (shared[:, 0] > 0).sum() == 2  # each engine has a row
        for model in (TOKENIZER, ENGINE):
            first = stubs(state, model)
            assert len(first) == 2
            os.kill(max(first), signal.SIGKILL)
            wait_for(lambda model=model, first=first: len(stubs(state, model) - first) == 2, f"two others of {model}")  # type: ignore[misc]
            wait_for(lambda: answers(state), "an answer")
    told = list(read_json_lines(tmp_path / "model_repository.events.jsonl"))
    assert [line["model"] for line in told if line["event"] == "stub-dead"] == [TOKENIZER, ENGINE]
    assert not [line for line in told if line["event"] == "server-ended"]


def test_a_publish_waits_for_a_server_that_starts_and_is_served_by_it(
    tmp_path: Path, release: Path, second_release: Path
) -> None:
    repository = deployed(tmp_path, release)
    process = start(repository)
    try:
        wait_for(lambda: (repository.path / ".lock").read_text() == STARTING, "the server's start")
        publish(second_release, repository, gate=ANY)
        state = read_state(repository.path)
        assert state is not None
        with connect(state.grpc_url) as classifier:
            assert classifier.classify(["which"])[0].release == read_manifest(second_release).release
    finally:
        stop(process)


@pytest.mark.timeout(900)  # a quarter of a minute on a machine of its own
def test_what_is_killed_under_load_comes_back_and_no_client_sees_an_error(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, hangable(release, tmp_path / "hangable"))
    with serving(repository, "--restarts", "20") as state:
        measured = measure(ChaosKill(kills=8, clients=2), state, repository.path)
    check(measured, back_s=LIMIT_S)  # how fast a crowded machine is says nothing
    assert measured["answered"] > 8
    assert {kind: times["count"] for kind, times in measured["back_s"].items()} == {
        "SIGKILL bert_engine": 2,
        "SIGKILL bert_tokenizer": 1,
        "SIGSTOP bert_engine": 1,
        "SIGSTOP bert_tokenizer": 1,
        "hang of bert_engine": 1,
        "hang of bert_tokenizer": 1,
        "SIGKILL server": 1,
    }
    told = [line["event"] for line in read_json_lines(tmp_path / "model_repository.events.jsonl")]
    assert told.count("stub-hung") == 2


def made_run(**changes: Any) -> dict[str, Any]:
    opened = {"supervisor": 3, "server": 65}
    times = {"SIGKILL bert_engine": {"max": 4.9}, "SIGKILL server": {"max": 9.0}}
    return {"errors": {}, "back_s": times, "leftovers": [], "descriptors_before": opened, "descriptors_after": opened} | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"errors": {"Unavailable: gone": 1}}, "errors reached clients: {'Unavailable: gone': 1}"),
        ({"back_s": {"hang of bert_engine": {"max": 5.1}}}, "hang of bert_engine: back after 5.1 s; allowed are 5"),
        ({"leftovers": ["bert_1_x"]}, "shared memory was left behind"),
        ({"descriptors_after": {"supervisor": 30, "server": 65}}, "the supervisor had 3 descriptors and has 30"),
    ],
)
def test_what_a_run_of_kills_must_not_find_fails_it(changes: dict[str, Any], said: str) -> None:
    check(made_run())
    with pytest.raises(Failure, match=re.escape(said)):
        check(made_run(**changes))


def test_a_server_that_dies_while_loading_prints_the_cause_out_of_its_log(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    (repository.path / "bert_engine" / "1" / "model.onnx").write_bytes(b"no graph at all")
    process = start(repository)
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "failed to load 'bert_engine' version 1" in errors
    assert "INVALID_PROTOBUF" in errors
    assert shared_memory(process.pid) == []


def test_a_second_server_over_one_repository_is_refused(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    with serving(repository) as state:
        process = start(repository)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 2
        assert f"is served already, by process {state.pid}" in errors


def test_a_port_in_use_is_named(tmp_path: Path, release: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = start(deployed(tmp_path, release), "--http-port", str(port))
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert f"--http-port {port} on 127.0.0.1: Address already in use" in errors


def test_free_ports_are_distinct_and_wanted_ones_are_kept() -> None:
    ports = claim_ports("127.0.0.1", {"grpc": 0, "http": 0, "metrics": 0})
    assert len(set(ports.values())) == 3
    assert claim_ports("127.0.0.1", {"grpc": ports["grpc"]}) == {"grpc": ports["grpc"]}
    with pytest.raises(Failure, match="--http-port"):
        claim_ports("127.0.0.1", {"grpc": ports["grpc"], "http": ports["grpc"]})


def test_a_repository_without_a_release_is_refused_with_the_next_step(tmp_path: Path) -> None:
    process = start(deployed(tmp_path))
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "no release is published" in errors
    assert "python -m serving.releases publish" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ("--grpc-port", "70000"),
        ("--start-timeout-s", "0"),
        ("--no-such-option", "1"),
        ("--patience-s", "1"),
        ("--restarts", "-1"),
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments: tuple[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "serving", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_the_token_is_for_its_owner_alone(server: ServerState, tmp_path: Path, release: Path) -> None:
    assert len(server.control_token) == 32
    server.write(tmp_path)
    assert (tmp_path / STATE_FILE).stat().st_mode & 0o777 == 0o600
