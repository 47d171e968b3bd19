"""`training.search`: its options, its report, the command that it ends with, and a search for real."""

from __future__ import annotations

import csv
import itertools
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from contract.command import UsageError
from contract.files import read_json
from tests.fixtures import TINY_RUN
from tests.training.pretended import loss_of, make_search, pretend
from training.finetune import finetune
from training.options import Finetune
from training.search import Search, best_command, command_of, last_layers, search, trial_options
from training.trials import OnEpoch, Trials


def test_a_search_ends_with_its_table_files_and_the_command_of_the_best_trial(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = make_search(tmp_path, tiny_base)
    search(options, pretend)
    out = capsys.readouterr().out
    with (options.output / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    finished = [float(row["loss"]) for row in rows if row["state"] == "finished"]
    assert finished == sorted(finished)
    best = Trials(options).finished[0]
    assert (int(rows[0]["trial"]), float(rows[0]["loss"])) == (best.number, best.value)
    chosen = trial_options(options, best.params, options.output / "best")
    assert best.value == pytest.approx(loss_of(chosen, 3))
    assert f"| {best.number} | finished | {best.value:.4g} |" in out
    command = out.splitlines()[-2].strip()
    assert command == best_command(options, best.params)
    page = (options.output / "search.html").read_text()
    assert page.count("<svg") == 1
    assert "best so far" in page
    assert page.count("<tr>") == 7
    assert "http" not in page.replace("http://www.w3.org", ""), "the page needs a network"


def test_the_printed_command_gives_the_options_of_the_trial(tmp_path: Path, tiny_base: Path) -> None:
    options = make_search(tmp_path, tiny_base, data=tmp_path / "my rows.csv", drop_empty=True, dropout=0.125)
    chosen = {"learning_rate": 0.00123456789, "rank": 4, "alpha": 32.0, "targets": "attention", "layers": "last-half"}
    trial = trial_options(options, chosen, tmp_path / "the best")
    assert (trial.targets, trial.layers) == (("query", "key", "value", "attention.output.dense"), (1,))
    words = shlex.split(command_of(trial))
    assert words[:3] == ["python", "-m", "training.finetune"]
    assert tyro.cli(Finetune, args=words[3:]) == trial


def test_a_folder_of_another_search_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    search(make_search(tmp_path, tiny_base, trials=1), pretend)  # writes search.json
    with pytest.raises(UsageError, match=r"--max-length was 128, is 64; --ranks was \[2, 4, 8, 16\], is \[2\]"):
        search(make_search(tmp_path, tiny_base, ranks=(2,), max_length=64), pretend)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    options = make_search(tmp_path, tiny_base)
    options.output.mkdir()
    (options.output / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and holds no search"):
        search(options, pretend)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"trials": 0}, "--trials is 0"),
        ({"learning_rates": (1e-2, 1e-3)}, "--learning-rates is 0.01 0.001"),
        ({"learning_rates": (0.0, 1e-3)}, "--learning-rates is 0.0"),
        ({"ranks": (4, 0)}, "--ranks: LoRA rank is 0"),
        ({"ranks": (4, 4)}, r"--ranks is \(4, 4\)"),
        ({"alphas": (8.0, -1.0)}, "--alphas is"),
        ({"target_sets": ()}, r"--target-sets is \(\)"),
        ({"layer_sets": ("all", "all")}, "--layer-sets is"),
        ({"epochs": 0}, "--epochs is 0"),
    ],
)
def test_options_that_cannot_be_searched_are_named(
    tmp_path: Path, tiny_base: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        make_search(tmp_path, tiny_base, **changes)


def test_torchrun_is_refused(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="run the same command several times instead"):
        make_search(tmp_path, tiny_base)


def test_a_missing_optuna_is_named_with_the_command_that_installs_it(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("training.trials", "training.search_report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install --constraint constraints.txt optuna matplotlib$"):
        search(make_search(tmp_path, tiny_base), pretend)


def test_the_command_line_has_the_options_of_a_trial_but_not_those_that_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    options = tyro.cli(Search, args=["--output", "x", "--dataset", "csv", "--ranks", "1", "2", "--layer-sets", "last-third"])
    assert (options.dataset, options.ranks, options.layer_sets) == ("csv", (1, 2), ("last-third",))
    with pytest.raises(SystemExit):
        tyro.cli(Search, args=["--output", "x", "--rank", "3"])
    assert "--rank" in capsys.readouterr().err


def test_the_last_layers_are_those_at_the_head(tiny_base: Path) -> None:
    assert last_layers(str(tiny_base), "all") is None
    assert last_layers(str(tiny_base), "last-half") == (1,)
    assert last_layers(str(tiny_base), "last-third") == (1,)


REAL: dict[str, Any] = {key: value for key, value in TINY_RUN.items() if key not in {"rank", "alpha", "learning_rate"}} | {
    "trials": 5,
    "epochs": 2,
    "learning_rates": (1e-4, 3e-2),
    "ranks": (2, 4),
    "alphas": (8.0,),
}


def test_a_real_search_never_touches_the_test_part_and_its_command_gives_the_same_model(
    tmp_path: Path, tiny_base: Path, tiny_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_search(tmp_path, tiny_base, data=tiny_csv, **REAL)
    with monkeypatch.context() as patch:
        patch.setattr("training.finetune.compute_logits", lambda *_, **__: pytest.fail("the test part was evaluated"))
        search(options)
    best = Trials(options).finished[0]
    assert len(Trials(options).rows()) == 5
    assert list((options.output / "workers").iterdir()) == []
    words = shlex.split(best_command(options, best.params))
    finetune(tyro.cli(Finetune, args=words[3:]))
    run = read_json(options.output / "best" / "run.json")
    assert min(epoch["validation"]["loss"] for epoch in run["epochs"]) == best.value


def test_a_signal_inside_a_real_training_keeps_the_search_and_cleans_up(
    tmp_path: Path, tiny_base: Path, tiny_csv: Path
) -> None:
    calls = itertools.count()

    def signalled(options: Finetune, *, on_epoch: OnEpoch) -> None:
        if next(calls) == 1:
            finetune(options, on_epoch=lambda _: os.kill(os.getpid(), signal.SIGINT))
        finetune(options, on_epoch=on_epoch)

    options = make_search(tmp_path, tiny_base, data=tiny_csv, **(REAL | {"trials": 2, "epochs": 1}))
    with pytest.raises(SystemExit) as stopped:
        search(options, signalled)
    assert stopped.value.code == 128 + signal.SIGINT
    assert len(Trials(options).rows()) == 1
    assert list((options.output / "workers").iterdir()) == []
    search(options)
    assert len(Trials(options).finished) == 2
