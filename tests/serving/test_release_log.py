"""The release log: every line whole, the way back read from it, and a broken line in nobody's way."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from contract.command import Failure
from serving.release_log import ReleaseLog


def logged(folder: Path, *moves: str) -> ReleaseLog:
    """A log with moves such as "promote 1"."""
    log = ReleaseLog(folder)
    for move in moves:
        event, version = move.split()
        log.append(event, version=int(version))
    return log


def test_when_a_version_became_the_candidate(tmp_path: Path) -> None:
    before = time.time()
    log = logged(tmp_path, "stage 2", "promote 2", "stage 3")
    assert before - 0.001 <= log.staged_at(2) <= log.staged_at(3) <= time.time()
    assert log.staged_at(4) == 0.0


@pytest.mark.parametrize(
    ("moves", "history"),
    [
        ([], []),
        (["promote 1"], [1]),
        (["promote 1", "promote 2", "promote 3"], [1, 2, 3]),
        (["promote 1", "promote 2", "promote 2"], [1, 2]),
        (["promote 1", "promote 2", "promote 3", "rollback 2"], [1, 2]),
        (["promote 1", "promote 2", "promote 3", "rollback 2", "rollback 1"], [1]),
        (["promote 1", "promote 2", "rollback 1", "promote 4"], [1, 4]),
        (["promote 1", "promote 2", "promote 1"], [1, 2, 1]),
        (["promote 1", "promote 2", "promote 3", "retire 2"], [1, 3]),
        (["promote 1", "promote 2", "stage 3", "withdraw 3"], [1, 2]),
    ],
)
def test_the_history_is_what_served_in_order(tmp_path: Path, moves: list[str], history: list[int]) -> None:
    log = logged(tmp_path, *moves)
    serving = history[-1] if history else None
    assert log.history(serving) == history
    assert log.previous(serving) == (history[-2] if len(history) > 1 else None)


def test_the_pins_are_right_where_the_log_lacks_the_last_move(tmp_path: Path) -> None:
    log = logged(tmp_path, "promote 1", "promote 2")
    assert log.history(3) == [1, 2, 3]  # killed after a flip to 3
    assert log.history(1) == [1]  # killed after a flip back to 1


def test_a_line_that_was_never_finished_is_left_behind(tmp_path: Path) -> None:
    log = logged(tmp_path, "promote 1")
    with log.path.open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00+00:00", "event": "prom')
    log.append("promote", version=2)
    assert [event["version"] for event in log.events()] == [1, 2]


def test_a_step_is_logged_with_its_seconds_and_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ReleaseLog(tmp_path)
    with log.step("compare", version=2) as found:
        found["agreement"] = 0.97
    (event,) = log.events()
    assert (event["event"], event["version"], event["agreement"]) == ("compare", 2, 0.97)
    assert event["seconds"] >= 0
    assert re.search(r"compare done in \d+\.\d\d s   agreement 0\.97\n", capsys.readouterr().out)


def test_a_step_that_fails_is_logged_with_its_reason(tmp_path: Path) -> None:
    log = ReleaseLog(tmp_path)
    with pytest.raises(Failure, match="too slow"), log.step("compare", version=2):
        raise Failure("too slow")
    (event,) = log.events()
    del event["time"]
    assert event == {"event": "refuse", "step": "compare", "reason": "too slow", "version": 2}


def test_a_log_that_cannot_be_written_is_a_failure_and_hides_no_other(tmp_path: Path) -> None:
    log = ReleaseLog(tmp_path)
    log.path.mkdir()
    with pytest.raises(Failure, match="cannot write the release log"):
        log.append("promote", version=1)
    with pytest.raises(Failure, match="too slow") as caught, log.step("compare"):
        raise Failure("too slow")
    assert "cannot write the release log" in caught.value.__notes__[0]
