"""`--engine auto`: the fastest that passes, by a clock that the test holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.choose import Candidate, prove_fastest, table, write_candidates, write_fastest
from builders.engine_record import EngineRecord
from builders.engines import KINDS, EngineKind, Source
from builders.parity import Reference
from builders.timing import answer_all, batches_of, fastest, measure_rounds, promising
from contract.command import Failure, UsageError
from tests.tiny import random_bert, tiny_config

REFERENCE = Reference([], [], np.empty((0, 2), np.float32), [])


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


def candidate(number: int, *seconds: float, refusal: str = "") -> Candidate:
    return Candidate(KINDS[number], Path(KINDS[number].title), list(seconds), refusal)


def prove_all_but(*titles: str) -> Callable[..., tuple[EngineRecord, Sequence[str]]]:
    """In place of `prove_files`: engines of these titles fail."""

    def prove(folder: Path, kind: EngineKind, reference: object) -> tuple[EngineRecord, Sequence[str]]:
        record = EngineRecord(
            kind=kind.engine,
            precision=kind.precision,
            runtime={"name": kind.engine, "version": "1"},
            parity={"flips": 0.01},
            accuracy={"engine": 0.75},
        )
        return record, ["labels differ", "logits differ"] if kind.title in titles else []

    return prove


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


def test_what_is_hopelessly_slow_after_two_rounds_is_timed_no_further() -> None:
    clock = Clock()
    calls = {"quick": clock.work(1.0), "near": clock.work(1.1), "slow": clock.work(3.0)}
    seconds = measure_rounds(calls, rounds=5, clock=clock, hopeless=1.2)
    assert {name: len(values) for name, values in seconds.items()} == {"quick": 5, "near": 5, "slow": 2}
    assert promising({"noisy": [1.0, 3.0], "other": [3.1]}, 1.2) == ["noisy", "other"]


def test_engines_are_proved_from_the_fastest_on_until_one_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.choose.prove_files", prove_all_but("onnxruntime int8"))
    references = []
    candidates = [candidate(0, 2.0, 2.2, 2.1), candidate(1, 1.0, 1.1, 1.2), candidate(2, 3.0), candidate(5, refusal="no texts")]
    chosen, record = prove_fastest(candidates, lambda: references.append(1) or REFERENCE)  # type: ignore[func-returns-value]
    assert (chosen.kind.title, record.title, len(references)) == ("onnxruntime fp32", "onnxruntime fp32", 2)
    lines = table(candidates, texts=100).splitlines()
    assert lines[2].startswith("| onnxruntime int8 | 11.00 (10.00 to 12.00) | 3 | 2.73x | fails: labels differ; logits differ")
    assert lines[3] == "| onnxruntime fp32 | 21.00 (20.00 to 22.00) | 3 | 1.43x | passes: accuracy 75.00%, 1.00% other labels |"
    assert lines[4] == "| openvino fp32 | 30.00 (30.00 to 30.00) | 1 | 1.00x | slower, not needed |"
    assert lines[5] == "not written: torch fp32: no texts"


def test_nothing_passed_is_a_failure_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.choose.prove_files", prove_all_but("onnxruntime fp32"))
    said = r"no engine passes the gates.*\nonnxruntime fp32: labels differ; logits differ\nonnxruntime int8: no texts"
    with pytest.raises(Failure, match=said):
        prove_fastest([candidate(0, 1.0), candidate(1, refusal="no texts")], lambda: REFERENCE)


def test_a_kind_that_cannot_be_written_is_kept_with_its_reason_and_said(tmp_path: Path, capsys: Any) -> None:
    def refuse() -> Any:
        raise UsageError("no texts to calibrate on")

    source = Source(random_bert(tiny_config()), refuse)
    found = write_candidates(tmp_path, KINDS[:2], source)
    assert [(one.kind.title, one.refusal) for one in found] == [
        ("onnxruntime fp32", ""),
        ("onnxruntime int8", "no texts to calibrate on"),
    ]
    assert (found[0].folder / "model.onnx").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "engine 1 of 2: onnxruntime fp32"
    assert printed[1].startswith("  written in ")
    assert printed[2:] == ["engine 2 of 2: onnxruntime int8", "  not written: no texts to calibrate on"]


def test_nothing_written_is_a_failure_before_anything_is_timed_or_proved(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise UsageError("no texts to calibrate on")

    source, target = Source(random_bert(tiny_config()), refuse), tmp_path / "engine"
    target.mkdir()
    with pytest.raises(Failure, match=r"no engine passes the gates.*\nonnxruntime int8: no texts to calibrate on"):
        write_fastest(target, KINDS[1:2], source, rows=[], reference=refuse)
    assert list(tmp_path.iterdir()) == [target]
