"""`--engine auto`: the fastest that passes, by a clock that the test holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.choose import Candidate, choose, table, write_candidates
from builders.engine_record import EngineRecord
from builders.engines import KINDS, Source
from builders.parity import Reference
from builders.timing import answer_all, batches_of, fastest, measure_rounds
from contract.command import Failure, UsageError


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call

    def __call__(self) -> float:
        return self.now


def candidate(title: str, *, passed: bool = True) -> Candidate:
    runtime = {"name": title, "version": "1"}
    record = EngineRecord(kind=title, precision="fp32", runtime=runtime, parity={"flips": 0.01}, accuracy={"engine": 0.75})
    return Candidate(title, Path(title), record if passed else None, "" if passed else "logits differ")


def test_every_call_is_timed_once_a_round_and_the_first_round_is_not_counted() -> None:
    clock, order = Clock(), []

    def named(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            clock.now += seconds * (10 if len(order) <= 2 else 1)  # the first round is slow

        return call

    seconds = measure_rounds({"a": named("a", 1.0), "b": named("b", 2.0)}, rounds=3, clock=clock)
    assert order == ["a", "b"] * 4
    assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_the_fastest_has_the_least_median_not_the_least_time() -> None:
    assert fastest({"lucky": [0.1, 5.0, 5.0], "steady": [2.0, 2.0, 9.0]}) == "steady"


def test_rows_are_answered_one_by_one_and_then_in_batches_with_the_last_one_smaller() -> None:
    rows = [np.array([number], np.int32) for number in range(70)]
    sizes: list[int] = []

    def run(batch: object) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        sizes.append(len(batch))  # type: ignore[arg-type]
        return []

    answer_all(run, rows)
    assert sizes == [1] * 70 + [32, 32, 6]
    assert [len(batch) for batch in batches_of(rows, 64)] == [64, 6]


def test_the_fastest_of_those_that_passed_is_taken() -> None:
    candidates = [candidate("slow"), candidate("wrong", passed=False), candidate("quick")]
    chosen, record = choose(candidates, {"slow": [2.0], "quick": [1.0]})
    assert (chosen.title, record.kind) == ("quick", "quick")


def test_nothing_passed_is_a_failure_with_every_reason() -> None:
    with pytest.raises(Failure, match=r"no engine passes the gates.*\na: logits differ\nb: logits differ"):
        choose([candidate("a", passed=False), candidate("b", passed=False)], {})


def test_the_table_is_sorted_by_speed_and_ends_with_the_refused() -> None:
    candidates = [candidate("slow"), candidate("wrong", passed=False), candidate("quick")]
    lines = table(candidates, {"slow": [2.0, 2.2, 2.1], "quick": [1.0, 1.1, 1.2]}, texts=100).splitlines()
    assert lines[2] == "| quick | 11.00 (10.00 to 12.00) | 75.00% | 1.00% |"
    assert lines[3].startswith("| slow | 21.00")
    assert lines[4] == "refused: wrong: logits differ"


def test_a_kind_that_cannot_be_written_is_kept_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, kind: object, source: object, reference: object) -> EngineRecord:
        assert folder.is_dir()
        raise UsageError("no texts to calibrate on")

    monkeypatch.setattr("builders.choose.write_cpu_engine", refuse)
    reference = Reference([], [], np.empty((0, 2), np.float32), [])
    (found,) = write_candidates(tmp_path, KINDS[:1], Source(None, lambda: None), reference)  # type: ignore[arg-type]
    assert (found.title, found.record, found.refusal) == ("onnxruntime fp32", None, "no texts to calibrate on")
