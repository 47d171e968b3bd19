"""`training.compare`, the command: it runs recipes in processes of their own, survives failures and signals, and reports."""

from __future__ import annotations

import csv
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure, UsageError
from contract.files import read_json, write_json
from tests.training.made_runs import make_run, write_sources
from training.compare import Compare, collect, compare
from training.recipes import find_recipe
from training.replay import Replay, replay


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


def pairs(sources: dict[str, Path]) -> tuple[str, ...]:
    return tuple(f"{name}={path}" for name, path in sources.items())


def test_one_recipe_fails_the_rest_goes_on_and_what_is_finished_is_skipped(
    sources: dict[str, Path], tiny_base: Path, tmp_path: Path, capfdbinary: Any
) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("text,label\na,b\n", encoding="utf-8")
    given: dict[str, Any] = {"output": tmp_path / "out", "base": str(tiny_base), "epochs": 2, "threads": 1}
    given |= {"sample_frac": 1.0, "class_threshold": 30}  # for the complaints alone
    names = ("seed3-lora", "complaints-full", "imdb-lora")  # the first and the last are one recipe
    failed = r"1 of 2 have no figures: imdb-lora: failed: .* has no column 'review'.* \(exit code 2; see .*imdb-lora\.log"
    with pytest.raises(Failure, match=failed):
        compare(Compare(recipes=names, data=(f"imdb={broken}", f"complaints={sources['complaints']}"), **given))
    said = capfdbinary.readouterr().out.decode()
    assert re.findall(r"^recipe .*", said, flags=re.M) == ["recipe 1 of 2: imdb-lora", "recipe 2 of 2: complaints-full"]
    assert "imdb-lora: failed: " in (tmp_path / "out" / "comparison.md").read_text()
    first = (tmp_path / "out" / "complaints-full" / "run.json").read_bytes()

    compare(Compare(recipes=names, data=pairs(sources), **given))
    said = capfdbinary.readouterr().out.decode()
    assert "recipe 2 of 2: complaints-full\n  finished before with the same options, skipped\n" in said
    assert "2 of 2 finished" in said
    assert "test, with epoch" in said  # the recipe's own words are passed on, and kept:
    assert "test, with epoch" in (tmp_path / "out" / "imdb-lora.log").read_text()
    assert (tmp_path / "out" / "complaints-full" / "run.json").read_bytes() == first
    assert read_json(tmp_path / "out" / "failures.json") == {}
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["imdb-lora", "complaints-full"]
    run = read_json(tmp_path / "out" / "imdb-lora" / "run.json")
    assert float(rows[0]["accuracy"]) == run["test"]["accuracy"]
    assert int(rows[0]["trainable"]) == run["strategy"]["trainable"] > 0
    assert int(rows[0]["peak_memory_bytes"]) == run["peak_memory_bytes"] > 10e6


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("copy.csv", {}, "data was '.*yelp.csv', is '.*copy.csv'"),
        ("", {"test_rows": 16}, "validation_share was 0.0833.*, is 0.05; test_share was 0.1666.*, is 0.1"),
        ("", {"epochs": 3}, "epochs was 1, is 3"),
    ],
)
def test_a_finished_run_of_other_options_is_an_error_before_anything_runs(
    file: str, changes: dict[str, Any], named: str, sources: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"base": str(tiny_base), "epochs": 1, "threads": 1}
    replay(Replay(name="yelp-none", data=sources["yelp"], output=tmp_path / "yelp-none", **given))
    data = tmp_path / file if file else sources["yelp"]
    data.write_bytes(sources["yelp"].read_bytes())
    options = Compare(recipes=("yelp-head", "yelp-none"), data=(f"yelp={data}",), output=tmp_path, **(given | changes))
    with pytest.raises(UsageError, match=f"yelp-none is the finished run of other options: {named}. Name another output"):
        compare(options)
    assert not (tmp_path / "yelp-head.log").exists()


def wait_for(log: Path, text: str) -> None:
    """Until `log` holds `text`, or a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not (log.exists() and text in log.read_text()):
        time.sleep(0.02)


def test_a_signal_saves_the_recipe_and_the_same_command_goes_on(
    sources: dict[str, Path], tiny_base: Path, tmp_path: Path, capfdbinary: Any
) -> None:
    options = Compare(recipes=("imdb-full",), data=pairs(sources), output=tmp_path, base=str(tiny_base), epochs=20, threads=1)

    def interrupt() -> None:
        wait_for(tmp_path / "imdb-full.log", "epoch 3/20")  # from here a signal waits for a step of epoch 3, then all is saved
        os.kill(os.getpid(), signal.SIGINT)  # this process alone, unlike Ctrl-C

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(SystemExit) as ended:
        compare(options)
    watcher.join()
    assert ended.value.code == 130
    assert b"SIGINT: the run is saved in" in capfdbinary.readouterr().out
    assert not (tmp_path / "imdb-full").exists()
    assert not (tmp_path / "comparison.html").exists()
    compare(options)
    said = capfdbinary.readouterr().out.decode()
    assert "continuing in epoch" in said
    assert "epoch 2: " not in said
    assert len(read_json(tmp_path / "imdb-full" / "run.json")["epochs"]) == 20
    assert (tmp_path / "comparison.html").exists()


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let `script` run in the place of every recipe."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_recipe_is_told_once_and_is_out_of_the_terminals_reach(
    number: signal.Signals, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, end = tmp_path / "out" / "imdb-lora.log", tmp_path / "end"
    script = "trap 'echo INT' INT; trap 'echo TERM' TERM; cut -d ' ' -f 6 /proc/$$/stat; echo ready"
    stand_in(tmp_path, monkeypatch, f"{script}; until [ -e {end} ]; do sleep 0.05; done; exit 1")

    def interrupt_twice() -> None:
        wait_for(log, "ready")
        os.kill(os.getpid(), number)
        wait_for(log, number.name.removeprefix("SIG"))
        os.kill(os.getpid(), number)
        end.touch()

    watcher = threading.Thread(target=interrupt_twice)
    watcher.start()
    with pytest.raises(SystemExit) as ended:
        compare(Compare(recipes=("imdb-lora", "imdb-full"), data=pairs(sources), output=tmp_path / "out"))
    watcher.join()
    assert ended.value.code == 128 + number
    session, *said = log.read_text().split()
    assert said == ["ready", number.name.removeprefix("SIG")]
    assert int(session) != os.getsid(0)
    assert not (tmp_path / "out" / "imdb-full.log").exists()


def test_a_process_that_is_killed_is_a_failure_with_its_signal(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "echo working; kill -9 $$")
    with pytest.raises(Failure, match=r"imdb-lora: failed: working \(killed by signal 9; see .*; yelp-full: failed: "):
        compare(Compare(recipes=("imdb-lora", "yelp-full"), data=pairs(sources), output=tmp_path / "out"))


def test_the_report_alone_is_made_of_the_folders_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, quality in (("yelp-full", 0.9), ("stackoverflow-lora-r8", 0.78), ("yelp-none", 0.5)):
        make_run(tmp_path, name, quality=quality)
    make_run(tmp_path, "yelp-head", quality=0.7).rename(tmp_path / "a-run-of-my-own")
    make_run(tmp_path, "yelp-head", quality=0.7).rename(tmp_path / ".yelp-head.partial-12345678")
    assert [run.name for run in collect(tmp_path)] == ["stackoverflow-lora-r8", "yelp-none", "yelp-full", "a-run-of-my-own"]
    compare(Compare(output=tmp_path, report_only=True))
    assert "4 of 4 finished" in capsys.readouterr().out
    compare(Compare(output=tmp_path, report_only=True, recipes=("seed1-full",)))
    rows = (tmp_path / "comparison.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["run", "yelp-full"]


def test_a_failure_before_stands_in_the_report(tmp_path: Path) -> None:
    write_json(tmp_path / "failures.json", {"imdb-lora": "the loss is nan"})
    make_run(tmp_path, "yelp-full", quality=0.9)
    with pytest.raises(Failure, match="1 of 2 have no figures: imdb-lora: failed: the loss is nan"):
        compare(Compare(output=tmp_path, report_only=True))
    assert "failed, see the notes" in (tmp_path / "comparison.html").read_text()


def test_a_named_recipe_that_never_ran_stands_in_the_report_and_fails_it(tmp_path: Path) -> None:
    make_run(tmp_path, "yelp-full", quality=0.9)
    with pytest.raises(Failure, match=r"2 of 3 have no figures: yelp-head: not run; imdb-lora: not run$"):
        compare(Compare(output=tmp_path, report_only=True, recipes=("seed1-head", "yelp-full", "imdb-lora")))
    assert "- yelp-head: not run." in (tmp_path / "comparison.md").read_text()
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [(row["run"], bool(row["accuracy"])) for row in rows] == [
        ("yelp-head", False),
        ("yelp-full", True),
        ("imdb-lora", False),
    ]


def test_a_folder_without_runs_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished run"):
        compare(Compare(output=tmp_path, report_only=True))


def test_each_recipe_is_given_the_options_that_are_its_own(sources: dict[str, Path], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"track": "mlflow", "test_rows": 20, "class_threshold": 30, "sample_frac": 0.5}
    options = Compare(recipes=("imdb-lora", "complaints-lora"), data=pairs(sources), output=tmp_path, **asked)
    assert options.passed_on(find_recipe("complaints-lora")) == {
        "data": sources["complaints"],
        "output": tmp_path / "complaints-lora",
        **asked,
    }
    assert options.passed_on(find_recipe("imdb-lora")) == {
        "data": sources["imdb"],
        "output": tmp_path / "imdb-lora",
        "track": "mlflow",
        "test_rows": 20,
    }


def test_many_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="one process, but WORLD_SIZE is 4"):
        compare(Compare(output=tmp_path / "out", report_only=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipes": ()}, "name the recipes to run"),
        ({"recipes": ("seed7",)}, "there is no recipe 'seed7'"),
        ({"data": ()}, "imdb-lora reads imdb; name its file with --data imdb=FILE"),
        ({"data": ("imdb",)}, "--data imdb is not DATASET=FILE"),
        ({"data": ("imdb=nothing.csv",)}, r"--data imdb=nothing\.csv: there is no such file or folder"),
        ({"data": ("imdb=/",), "sample_frac": 0.5}, "--sample-frac is for complaints, and no recipe here reads them"),
        ({"data": ("imdb=/",), "class_threshold": 5}, "--class-threshold is for complaints, and no recipe"),
    ],
)
def test_a_wrong_call_is_named_before_anything_runs(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipes": ("imdb-lora",), "output": tmp_path} | changes
    with pytest.raises(UsageError, match=named):
        Compare(**given)


def test_data_that_no_recipe_reads_is_no_error(sources: dict[str, Path], tmp_path: Path) -> None:
    assert Compare(recipes=("imdb-lora",), data=pairs(sources), output=tmp_path).files == sources
    assert find_recipe("imdb-lora").dataset == "imdb"
