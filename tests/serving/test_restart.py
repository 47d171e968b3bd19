"""Commands given while the server is down: they wait until it is started again, and going back needs no server at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from clients import connect
from contract.command import Failure
from contract.release import read_manifest
from contract.tensors import CANDIDATE, ENGINE, ENSEMBLES
from serving.publish import publish
from serving.release_log import ReleaseLog
from serving.state import ServerState
from serving.stubs import find_children
from serving.switch import promote, retire, rollback
from tests.clients.sockets import closed_url
from tests.served import deployed, serving
from tests.serving.faults import variant, vouch
from tests.serving.processes import answers, server_pid, wait_for


def ends_the_server_when_told(release: Path, target: Path, flag: Path) -> Path:
    """A release that is in order until the file `flag` exists; from then on each of its answers kills the server."""
    variant(release, target, name="ends-the-server", shift=0.5)
    model = target / ENGINE / "model.py"
    killing = "\nimport os, sys\n_right = run_rows\n\ndef run_rows(*arguments):\n"
    killing += f"    if os.path.exists({str(flag)!r}) and 'rehearsed' not in sys.argv[0]:\n        os.kill(os.getppid(), 9)\n"
    killing += "    return _right(*arguments)\n"
    model.write_text(model.read_text(encoding="utf-8") + killing, encoding="utf-8")
    return vouch(target)


@pytest.mark.server
@pytest.mark.parametrize("killer", ["once, by a signal", "each time that it answers"])
def test_a_rollback_while_the_server_is_down_is_served_when_it_is_up_again(tmp_path: Path, release: Path, killer: str) -> None:
    flag = tmp_path / "flag"
    repository = deployed(tmp_path, release, ends_the_server_when_told(release, tmp_path / "ends", flag))
    with serving(repository) as state:
        first = server_pid(state)
        assert first is not None
        if killer.startswith("once"):
            os.kill(first, signal.SIGKILL)
        else:
            flag.touch()
            wait_for(lambda: server_pid(state) not in {None, first}, "another server")
        assert rollback(repository) == 1
        assert answers(state)
        for ensemble in ENSEMBLES:
            with connect(state.grpc_url, model=ensemble) as classifier:
                assert classifier.classify(["the cat"])[0].release == read_manifest(release).release
    assert ReleaseLog(repository.path).events()[-1]["event"] == "rollback"


@pytest.mark.server
def test_a_rollback_that_is_broken_off_while_the_server_starts_leaves_what_served(
    tmp_path: Path, release: Path, second_release: Path
) -> None:
    repository = deployed(tmp_path, release, second_release)
    before = repository.configs()
    with serving(repository) as state, ExitStack() as stopped:
        os.kill(state.pid, signal.SIGSTOP)  # so that no server is started before the rollback has seen that there is none
        stopped.callback(os.kill, state.pid, signal.SIGCONT)
        os.kill(server_pid(state) or 0, signal.SIGKILL)
        command = [sys.executable, "-m", "serving.releases", "rollback", "--repository", str(repository.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as rollback:
            assert rollback.stdout and rollback.stderr
            assert any("waiting for that" in line for line in rollback.stdout)
            os.kill(state.pid, signal.SIGCONT)
            wait_for(lambda: bool(find_children(server_pid(state) or 0).stubs), "a server that has read the repository")
            started = server_pid(state) or 0
            os.kill(started, signal.SIGSTOP)
            stopped.callback(os.kill, started, signal.SIGCONT)
            rollback.send_signal(signal.SIGINT)
            assert any("waiting until it is started again" in line for line in rollback.stdout)
            os.kill(started, signal.SIGCONT)
            said = rollback.communicate(timeout=60)[1]
        assert (rollback.returncode, said) == (130, "interrupted\n")
        for ensemble in ENSEMBLES:
            with connect(state.grpc_url, model=ensemble) as classifier:
                assert classifier.classify(["the cat"])[0].release == read_manifest(second_release).release
    assert repository.configs() == before
    assert ReleaseLog(repository.path).events()[-1]["event"] == "promote"


@pytest.mark.server
def test_a_promote_waits_for_a_server_that_is_started_again(
    tmp_path: Path, release: Path, second_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = deployed(tmp_path, release, second_release)
    with serving(repository) as state:
        os.kill(server_pid(state) or 0, signal.SIGKILL)
        wait_for(lambda: not answers(state), "the end of the server")
        promote(repository, 1)
        assert answers(state)
    assert "does not answer; waiting until it is started again" in capsys.readouterr().out


def gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a supervisor that lives, whose server answers no more; nobody waits long for it."""
    where: dict[str, Any] = {f"{name}_url": closed_url() for name in ("grpc", "http", "metrics")}
    ServerState(pid=os.getpid(), control_token="t", **where).write(folder)
    for module in ("switch", "deployment"):
        monkeypatch.setattr(f"serving.{module}.RESTART_WAIT_S", 0.3)


def test_a_rollback_without_a_server_that_comes_up_is_on_the_disk(
    tmp_path: Path, release: Path, second_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = deployed(tmp_path, release, second_release)
    gone(repository.path, monkeypatch)
    with pytest.raises(Failure, match=r"version 1 is what the server's next start serves, which did not come within 0\.3 s"):
        rollback(repository)
    assert [repository.pinned(ensemble) for ensemble in ENSEMBLES] == [1, 1]
    event = ReleaseLog(repository.path).events()[-1]
    assert (event["event"], event["version"], event["served"]) == ("rollback", 1, False)


def test_nothing_else_moves_while_the_server_does_not_come_up(
    tmp_path: Path, release: Path, second_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = deployed(tmp_path, release, second_release)
    publish(variant(release, tmp_path / "third", name="third", shift=0.5), repository, stage=True)
    gone(repository.path, monkeypatch)
    before = repository.configs()
    other = variant(release, tmp_path / "fourth", name="fourth", shift=0.6)
    for move in (lambda: promote(repository, 3), lambda: retire(repository, [1]), lambda: publish(other, repository)):
        with pytest.raises(Failure, match=r"does not answer within 0\.3 s; see its log"):
            move()
    assert (repository.configs(), repository.versions(), repository.pinned(CANDIDATE)) == (before, [1, 2, 3], 3)
