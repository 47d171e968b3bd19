"""`serving.watch` and `serving.probe`: how often is asked, what a config with a mistake does. The real server: test_server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contract.tensors import CLASSIFIER, ENGINE, TOKENIZER
from serving.events import EventLog
from serving.launch import SHM_PREFIX_VARIABLE, Installation
from serving.probe import OK, Outcome, Prober
from serving.process import ServerProcess
from serving.repository import Repository
from serving.state import ServerState
from serving.watch import Watch
from tests.model_repository.loader import load_module
from tests.served import deployed

STATE = ServerState(pid=1, grpc_url="127.0.0.1:9", http_url="127.0.0.1:9", metrics_url="127.0.0.1:9", control_token="x")


@contextmanager
def watching(repository: Repository, log: Path, *, shm_prefix: str = "bert_test_none_") -> Iterator[Watch]:
    """A watch over a process that lives and does nothing."""
    sleeping = Installation(Path(sys.executable), ["-c", "import time; time.sleep(60)"])
    server = ServerProcess(sleeping, [], log=log, shm_prefix=shm_prefix, environment={})
    try:
        with Watch(repository, STATE, server, EventLog(log.with_name("events.jsonl")), patience_s=60, python_steps=()) as watch:
            yield watch
    finally:
        server.kill()


def test_the_classifier_is_asked_less_often_while_the_engine_answers_others(
    tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = f"bert_test_{os.getpid()}_asked_"
    progress = Path("/dev/shm") / f"{prefix}progress_1"  # noqa: S108 - where POSIX shared memory lives
    asked: list[float] = []

    def looks(watch: Watch, seconds: float, *, tokens: float) -> list[float]:
        """When the classifier was asked; each look finds so many tokens more, of two instances together."""
        asked.clear()
        for _ in range(round(seconds / 0.25)):
            watch._now += 0.25
            for counts in engines:
                counts[1] += tokens
            watch._ask()
        return [now - watch._now + seconds for now in asked]

    monkeypatch.setenv(SHM_PREFIX_VARIABLE, prefix)
    engines = [load_module(ENGINE).open_progress("1", f"{ENGINE}_0_{number}") for number in range(2)]  # as its stubs do
    with watching(deployed(tmp_path, release), tmp_path / "log", shm_prefix=prefix) as watch:
        watch._classifier.ask = asked.append  # type: ignore[assignment]
        assert looks(watch, 1.0, tokens=0) == [0.25, 0.5, 0.75, 1.0], "nobody else is answered"
        assert looks(watch, 3.0, tokens=16) == [1.0, 2.0, 3.0], "others are"
        assert looks(watch, 1.0, tokens=0) == [0.25, 0.5, 0.75, 1.0], "no more"
    assert not progress.exists()


def test_a_config_with_a_mistake_changes_nothing_for_a_running_server(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    with watching(repository, tmp_path / "log") as watch:
        for broken in ("", "max_batch_size: 64 max_que"):
            for model in (CLASSIFIER, TOKENIZER):
                (repository.path / model / "config.pbtxt").write_text(broken)
            assert watch._look() == ""


def test_a_prober_has_one_request_under_way_and_grows_impatient() -> None:
    asked: list[Future[Outcome]] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments: Any, **named: Any) -> Any:
            asked.append(Future())
            return asked[-1]

    prober = Prober(Pool(1), lambda: Outcome(OK, ""))
    prober.ask(10.0)
    prober.ask(11.0)
    assert len(asked) == 1
    assert prober.owed_s(12.5) == 2.5
    assert prober.take() is None
    asked[0].set_result(Outcome(500, "no"))
    assert prober.owed_s(13.0) == 0.0
    assert prober.take() == Outcome(500, "no")
    assert prober.take() is None
    prober.ask(14.0)
    assert len(asked) == 2
