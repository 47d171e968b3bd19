"""Two processes train one model under torch's own launcher: the result of one process, written once, continued by two.

57 texts in batches of 7 leave every batch uneven and one with a single text, of which the second process has no row.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contract.command import UsageError
from contract.files import read_json, read_json_lines
from tests.training.tiny_runs import command_line, options, progress_of, result_of
from training.batches import plan_batches
from training.distributed import ALONE, Workers, choose_device, join_workers
from training.finetune import Finetune, finetune
from training.state import STATE_FILE, state_folder

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "train_rows": 57,
    "tokens_per_batch": 10_000,
    "batch_rows": 7,
    "learning_rate": 1e-3,
    "targets": ("query", "value"),
    "threads": 1,
}


def run_of(output: Path, data: Path, base: Path, **changes: Any) -> Finetune:
    return options(output, data, base, **(SETTINGS | changes))


def launch(run: Finetune) -> subprocess.Popen[str]:
    """Two processes of `run` by `torchrun`, on this machine and a free port."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command_line(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_csv: Path) -> tuple[Path, str]:
    """The run of two processes that nobody stopped, and what it printed."""
    run = run_of(tmp_path_factory.mktemp("two") / "run", tiny_csv, tiny_base)
    started = launch(run)
    out, errors = started.communicate(timeout=120)
    assert started.returncode == 0, errors
    return run.output, out


def test_the_batches_are_uneven_and_one_has_a_single_text() -> None:
    sizes = sorted(map(len, plan_batches([9] * 57, tokens_per_batch=10_000, shuffle_seed=0, batch_rows=7)))
    assert sizes == [1, *[7] * 8]


def test_two_processes_give_the_weights_and_figures_of_one(
    whole: tuple[Path, str], tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    finetune(run_of(tmp_path / "one", tiny_csv, tiny_base))
    two, one = (load_file(folder / "adapter_model.safetensors") for folder in (whole[0], tmp_path / "one"))
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0.0, msg=name)
    runs = [read_json(folder / "run.json") for folder in (whole[0], tmp_path / "one")]
    for ours, theirs in zip(*(run["epochs"] for run in runs), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
        assert ours["validation"] == pytest.approx(theirs["validation"], abs=1e-5)
        assert ours["best"] == theirs["best"]
    assert runs[0]["test"] == pytest.approx(runs[1]["test"], abs=1e-5)
    assert [run["machine"]["processes"] for run in runs] == [2, 1]
    assert (whole[0] / "heldout.jsonl").read_bytes() == (tmp_path / "one" / "heldout.jsonl").read_bytes()


def test_one_process_alone_writes_and_prints(whole: tuple[Path, str]) -> None:
    output, printed = whole
    assert [path.name for path in output.parent.iterdir()] == ["run"]
    assert len(list(read_json_lines(output / "metrics.jsonl"))) == SETTINGS["epochs"] + 1
    for line in ("epoch 1: ", f"wrote {output}", "57 training texts"):
        assert printed.count(line) == 1, line
    assert "of each of 2 processes" in printed


def test_a_signal_to_the_launcher_saves_the_run_and_two_processes_alone_continue_it(
    whole: tuple[Path, str], tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", tiny_csv, tiny_base, save_every_s=1e-6)
    state = state_folder(run.output) / STATE_FILE
    started = launch(run)
    while not state.exists() and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    out, errors = started.communicate(timeout=120)
    assert started.returncode != 0
    assert f"SIGTERM: the run is saved in {state.parent}; continue it by the same command with --resume" in out, errors
    assert not run.output.exists()
    assert progress_of(run.output) < (SETTINGS["epochs"], 0)
    with pytest.raises(UsageError, match=r"--resume cannot continue .*: processes was 2, is 1\. Use the same again"):
        finetune(run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True))
    assert state.exists()
    continued = launch(run_of(tmp_path / "run", tiny_csv, tiny_base, resume=True))
    out, errors = continued.communicate(timeout=120)
    assert continued.returncode == 0, errors
    assert "continuing in epoch" in out
    assert result_of(run.output) == result_of(whole[0])


WORKER = """
import gc, sys, torch
from pathlib import Path
from training.distributed import join_workers

def threads():
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))

def train(workers):
    model = workers.wrap(torch.nn.Linear(3, 2), torch.device("cpu"))
    model(torch.ones(1, 3)).sum().backward()
    return threads()

with join_workers() as workers:
    during = train(workers)
    gc.collect()
Path(sys.argv[1], str(workers.rank)).write_text(f"{during > 0} {threads()}")
"""


def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*words, str(tmp_path / "worker.py"), str(tmp_path)], env=environment, check=True, timeout=120)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True 0"] * 2


def test_rows_are_dealt_to_the_workers_each_once() -> None:
    rows = list(range(7))
    dealt = [Workers(rank, 3).share(rows) for rank in range(3)]
    assert dealt == [[0, 3, 6], [1, 4], [2, 5]]
    assert Workers(1, 2).share([5]) == []
    assert ALONE.share(rows) == rows


def test_one_worker_alone_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_workers() as workers:
        assert workers == ALONE
        assert workers.first
        tensor = torch.tensor([1.0, 2.0])
        assert workers.sum(tensor).tolist() == [1.0, 2.0]
        assert workers.any(True, False) == [True, False]
        assert workers.gather(tensor) == [tensor]
        layer = torch.nn.Linear(2, 2)
        assert workers.wrap(layer, torch.device("cpu")) is layer
    assert choose_device("cpu") == torch.device("cpu")
