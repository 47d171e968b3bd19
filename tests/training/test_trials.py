"""`training.trials`: how a search continues after a stop or a kill, is shared, prunes, and takes failures."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from tests.training.pretended import loss_of, make_search, parameters, pretend, result, run_trials
from training.options import Finetune
from training.search import search, trial_options
from training.trials import OnEpoch, Trials


def test_a_search_continues_up_to_the_trials_in_all(tmp_path: Path, tiny_base: Path) -> None:
    search(make_search(tmp_path, tiny_base, trials=2), pretend)
    more: list[Finetune] = []

    def count(options: Finetune, *, on_epoch: OnEpoch) -> None:
        more.append(options)
        pretend(options, on_epoch=on_epoch)

    options = make_search(tmp_path, tiny_base, trials=5, threads=2)
    search(options, count)
    assert len(more) == 3
    assert len(Trials(options).rows()) == 5


def test_an_interrupted_search_keeps_what_is_done_and_draws_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = itertools.count()

    def interrupted(options: Finetune, *, on_epoch: OnEpoch) -> None:
        if next(calls) == 3:
            on_epoch(result(1, 9.0))
            raise KeyboardInterrupt
        pretend(options, on_epoch=on_epoch)

    options = make_search(tmp_path / "first", tiny_base)
    with pytest.raises(KeyboardInterrupt):
        search(options, interrupted)
    assert len(Trials(options).rows()) == 3
    assert "the same command continues up to 6 trials" in capsys.readouterr().out
    assert (options.output / "search.html").exists()
    assert list((options.output / "workers").iterdir()) == []
    run_trials(options)
    (tmp_path / "second").mkdir()
    whole = make_search(tmp_path / "second", tiny_base)
    run_trials(whole)
    assert parameters(options) == parameters(whole)
    assert len({row["learning_rate"] for row in parameters(whole)}) == 6


def test_another_seed_draws_something_else(tmp_path: Path, tiny_base: Path) -> None:
    options = [make_search(tmp_path / str(seed), tiny_base, trials=1, seed=seed) for seed in (0, 1)]
    for one in options:
        one.output.parent.mkdir()
        run_trials(one)
    assert parameters(options[0]) != parameters(options[1])


def test_workers_share_a_search_and_make_no_trial_too_many(tmp_path: Path, tiny_base: Path) -> None:
    options = make_search(tmp_path, tiny_base, trials=9)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run_trials, [options] * 3))
    assert len(Trials(options).rows()) == 9
    assert len({row["learning_rate"] for row in parameters(options)}) == 9


def test_a_trial_whose_process_was_killed_is_made_up_for(tmp_path: Path, tiny_base: Path) -> None:
    options = make_search(tmp_path, tiny_base, trials=3)
    code = f"""
import os, signal
from pathlib import Path
from tests.training.pretended import make_search
from training.search import search
def train(options, *, on_epoch):
    options.output.mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
search(make_search(Path({str(tmp_path)!r}), Path({str(tiny_base)!r}), trials=3), train)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == -signal.SIGKILL
    assert [row["state"] for row in Trials(options).rows()] == ["running"]
    assert len(list((options.output / "workers").iterdir())) == 1
    run_trials(options)
    assert [row["trial"] for row in sorted(Trials(options).rows(), key=lambda row: row["trial"])] == [1, 2, 3]
    assert list((options.output / "workers").iterdir()) == []


def test_a_torn_journal_is_mended(tmp_path: Path, tiny_base: Path) -> None:
    options = make_search(tmp_path, tiny_base, trials=2)
    run_trials(options)
    with (options.output / "trials.log").open("a") as file:
        file.write('{"op_code": 8, "wor')
    assert len(run_trials(make_search(tmp_path, tiny_base, trials=4)).rows()) == 4
    assert len(Trials(options).rows()) == 4


@pytest.mark.parametrize("prune", [True, False])
def test_a_trial_above_the_median_ends_after_its_first_epoch(tmp_path: Path, tiny_base: Path, prune: bool) -> None:
    options = make_search(tmp_path, tiny_base, trials=12, prune=prune)
    rows = run_trials(options).rows()
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert bool(pruned) == prune
    assert all(row["epochs"] < 3 for row in pruned)
    assert all(row["epochs"] == 3 for row in rows if row["state"] == "finished")
    worst_first_epochs = [loss_of(trial_options(options, row, tmp_path), 1) for row in pruned]
    assert all(loss > Trials(options).finished[0].intermediate_values[1] for loss in worst_first_epochs)


def test_a_trial_that_fails_counts_and_says_why(tmp_path: Path, tiny_base: Path) -> None:
    calls = itertools.count()

    def diverges_once(options: Finetune, *, on_epoch: OnEpoch) -> None:
        if next(calls) == 1:
            raise Failure("the loss is nan")
        pretend(options, on_epoch=on_epoch)

    options = make_search(tmp_path, tiny_base, trials=3)
    search(options, diverges_once)
    rows = Trials(options).rows()
    assert [(row["state"], row["reason"]) for row in rows] == [("finished", "")] * 2 + [("failed", "the loss is nan")]
    assert "the loss is nan" in (options.output / "search.csv").read_text()


def test_a_search_without_a_good_trial_fails(tmp_path: Path, tiny_base: Path) -> None:
    def diverges(options: Finetune, *, on_epoch: OnEpoch) -> None:
        raise Failure("the loss is nan")

    with pytest.raises(Failure, match="none of 2 trials ended well; the last one: the loss is nan"):
        search(make_search(tmp_path, tiny_base, trials=2), diverges)


def test_what_every_trial_would_stumble_over_ends_the_search(tmp_path: Path, tiny_base: Path) -> None:
    def refuses(options: Finetune, *, on_epoch: OnEpoch) -> None:
        raise UsageError("--dataset csv needs --data FILE")

    options = make_search(tmp_path, tiny_base)
    with pytest.raises(UsageError, match="needs --data FILE"):
        search(options, refuses)
    assert Trials(options).rows() == []
