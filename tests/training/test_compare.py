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
    first = (make_run(tmp_path / "out", "yelp-head", quality=0.7, epochs=1) / "run.json").read_bytes()
    given: dict[str, Any] = {"output": tmp_path / "out", "base": str(tiny_base), "epochs": 2, "threads": 1}
    names = ("seed3-lora", "yelp-head", "imdb-lora")  # the first and the last are one recipe
    failed = r"1 of 2 failed: imdb-lora: .* has no column 'review'.* \(exit code 2; see .*imdb-lora\.log"
    with pytest.raises(Failure, match=failed):
        compare(Compare(recipes=names, data=(f"imdb={broken}", f"yelp={sources['yelp']}"), **given))
    said = capfdbinary.readouterr().out.decode()
    assert re.findall(r"^recipe .*", said, flags=re.M) == ["recipe 1 of 2: imdb-lora", "recipe 2 of 2: yelp-head"]
    assert "finished before, skipped; its base, epochs differ: remove" in said
    assert "imdb-lora: failed: " in (tmp_path / "out" / "comparison.md").read_text()

    compare(Compare(recipes=names, data=pairs(sources), **given))
    said = capfdbinary.readouterr().out.decode()
    assert "2 of 2 finished" in said
    assert "test, with epoch" in said  # the recipe's own words are passed on, and kept:
    assert "test, with epoch" in (tmp_path / "out" / "imdb-lora.log").read_text()
    assert (tmp_path / "out" / "yelp-head" / "run.json").read_bytes() == first
    assert read_json(tmp_path / "out" / "failures.json") == {}
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["imdb-lora", "yelp-head"]
    run = read_json(tmp_path / "out" / "imdb-lora" / "run.json")
    assert float(rows[0]["accuracy"]) == run["test"]["accuracy"]
    assert int(rows[0]["trainable"]) == run["strategy"]["trainable"] > 0
    assert int(rows[0]["peak_memory_bytes"]) == run["peak_memory_bytes"] > 10e6


def signal_when(log: Path, text: str) -> None:
    """Send this process SIGTERM as soon as `log` holds `text`, or after a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not (log.exists() and text in log.read_text()):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_saves_the_recipe_and_the_same_command_goes_on(
    sources: dict[str, Path], tiny_base: Path, tmp_path: Path, capfdbinary: Any
) -> None:
    options = Compare(recipes=("imdb-full",), data=pairs(sources), output=tmp_path, base=str(tiny_base), epochs=20, threads=1)
    watcher = threading.Thread(target=signal_when, args=(tmp_path / "imdb-full.log", "epoch 2: "))
    watcher.start()
    with pytest.raises(SystemExit) as ended:
        compare(options)
    watcher.join()
    assert ended.value.code == 143
    assert b"SIGTERM: the run is saved in" in capfdbinary.readouterr().out
    assert not (tmp_path / "imdb-full").exists()
    assert not (tmp_path / "comparison.html").exists()
    compare(options)
    said = capfdbinary.readouterr().out.decode()
    assert "continuing in epoch" in said
    assert "epoch 2: " not in said
    assert len(read_json(tmp_path / "imdb-full" / "run.json")["epochs"]) == 20
    assert (tmp_path / "comparison.html").exists()


def test_a_process_that_is_killed_is_a_failure_with_its_signal(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho working\nkill -9 $$\n", encoding="utf-8")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    with pytest.raises(Failure, match=r"2 of 2 failed: imdb-lora: working \(killed by signal 9; see .*; yelp-full: working"):
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
    with pytest.raises(Failure, match="1 of 2 failed: imdb-lora: the loss is nan"):
        compare(Compare(output=tmp_path, report_only=True))
    assert "failed, see the notes" in (tmp_path / "comparison.html").read_text()


@pytest.mark.parametrize("names", [(), ("yelp-full",)])
def test_a_folder_without_runs_has_no_report(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished run"):
        compare(Compare(output=tmp_path, report_only=True, recipes=names))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipes": ()}, "name the recipes to run"),
        ({"recipes": ("seed7",)}, "there is no recipe 'seed7'"),
        ({"data": ()}, "imdb-lora reads imdb; name its file with --data imdb=FILE"),
        ({"data": ("imdb",)}, "--data imdb is not DATASET=FILE"),
        ({"data": ("imdb=nothing.csv",)}, r"--data imdb=nothing\.csv: there is no such file or folder"),
    ],
)
def test_a_wrong_call_is_named_before_anything_runs(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipes": ("imdb-lora",), "output": tmp_path} | changes
    with pytest.raises(UsageError, match=named):
        Compare(**given)


def test_data_that_no_recipe_reads_is_no_error(sources: dict[str, Path], tmp_path: Path) -> None:
    assert Compare(recipes=("imdb-lora",), data=pairs(sources), output=tmp_path).files == sources
    assert find_recipe("imdb-lora").dataset == "imdb"
