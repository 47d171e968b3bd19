"""`builders.instances`: real engines in processes of their own, measured, and the choice stated where the server reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import builders.instances
from builders.engine_record import EngineRecord
from builders.engines import KINDS, Source, write_files
from builders.instances import measure_placements, place_engine
from builders.parity import Int32
from builders.placement import Placement
from contract.command import Failure
from contract.files import read_json, write_json
from tests.tiny import random_bert, tiny_config

MODEL = random_bert(tiny_config(), seed=11, std=0.1)
RECORD = EngineRecord(kind="onnxruntime", precision="fp32", runtime={}, parity={}, hardware={"cores": 2})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    def no_int8() -> Any:
        raise AssertionError("int8 was not asked for")

    write_files(tmp_path, KINDS[0], Source(MODEL, no_int8))
    return tmp_path


def rows() -> list[Int32]:
    return [np.arange(1, 2 + number % 20, dtype=np.int32) for number in range(40)]


def test_every_placement_is_measured_in_every_round(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders.instances, "SHORTEST_S", 0.05)
    trials = measure_placements(engine, [Placement(1, 1), Placement(2, 1)], rows(), rounds=2)
    assert list(trials) == [Placement(1, 1), Placement(2, 1)]
    for trial in trials.values():
        assert [len(trial.texts_per_s), len(trial.lone_ms)] == [2, 2]
        assert min(trial.texts_per_s + trial.lone_ms) > 0


def test_an_engine_that_does_not_open_is_a_failure_with_its_own_words(engine: Path) -> None:
    write_json(engine / "engine.json", read_json(engine / "engine.json") | {"kind": "abacus"})
    with pytest.raises(Failure, match="an instance of the engine ended with code 1 while it was measured: KeyError: 'abacus'"):
        measure_placements(engine, [Placement(1, 1)], rows())


def test_what_was_chosen_is_stated_with_its_figures(engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(builders.instances, "SHORTEST_S", 0.05)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    record = place_engine(engine, RECORD, instances="auto", threads="auto", rows=rows)
    placement = record.hardware["placement"]
    assert (placement["instances"], placement["threads"], record.hardware["cores"]) == (1, 1, 2)
    assert len(placement["tried"][0]["texts_per_s"]) == builders.instances.ROUNDS
    assert read_json(engine / "engine.json")["threads"] == 1
    assert read_json(engine / "engine.json")["kind"] == "onnxruntime"
    printed = capsys.readouterr().out
    assert "| 1 x 1 threads | " in printed
    assert "1 x 1 threads: the most texts/s of those at most 1.5 times as slow" in printed


def test_several_instances_share_the_cores_and_come_with_a_word_of_warning(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    record = place_engine(engine, RECORD, instances=2, threads=0, rows=rows)
    assert record.hardware["placement"] == {"instances": 2, "threads": 4}
    assert read_json(engine / "engine.json")["threads"] == 4
    assert "note: 2 instances are watched as one; docs/operations.md says what that means" in capsys.readouterr().out


def test_without_a_word_nothing_is_stated(engine: Path) -> None:
    before = read_json(engine / "engine.json")
    assert place_engine(engine, RECORD, instances=1, threads=0, rows=rows) == RECORD
    assert read_json(engine / "engine.json") == before
