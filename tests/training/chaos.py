"""Kill trainings at random moments, continue them, and prove that nothing is ever torn and no bit is lost.

    python -m tests.training.chaos --kills 1000

A tiny model is trained in a child process that saves its state after every step and is killed by SIGKILL; the same command
is given again until the run is finished, and its result is compared with that of a run that nobody killed. After every kill
the output must be absent or whole, and the state absent or readable. Exit code 1 when anything is not.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
import random
import shutil
import signal
import statistics
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import tyro
from tqdm import tqdm

from contract.command import Failure, UsageError, run_command
from tests.fixtures import write_base
from tests.tiny import tiny_texts
from tests.training.tiny_runs import options, result_of
from training.checkpoint import load_checkpoint
from training.finetune import Finetune, finetune
from training.state import STATE_FILE, load_state, state_folder

KINDS: tuple[dict[str, Any], ...] = (
    {"lora_dropout": 0.1},
    {"strategy": "full", "dropout": 0.1},
    {"strategy": "scratch", "scratch_size": (256, 2, 4, 1024)},  # a state of megabytes, which takes its time to write
    {"strategy": "masked"},
    {"strategy": "last", "cache_prefix": True, "dropout": 0.1},
)
SETTINGS: dict[str, Any] = {"epochs": 2, "train_rows": 60, "save_every_s": 1e-6, "resume": True}


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """Kill trainings at random moments and continue them."""

    kills: int = 50
    """Kills in all, at least 1."""
    seed: int = 0
    """Of the moments. They also depend on how fast the machine is."""

    def __post_init__(self) -> None:
        if self.kills < 1:
            raise UsageError(f"--kills is {self.kills}; it must be at least 1")


@dataclass
class Tally:
    """What happened."""

    kills: int = 0
    finished: int = 0
    torn: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    gained: list[int] = field(default_factory=list)
    """Steps that each killed process brought its run forward."""


def chaos(command: Chaos) -> None:
    """Run the command; see the module docstring. Raises Failure when a file was torn or a result differs."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork copies no threads
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())  # its own is shared with the children: one killed while it prints would keep it for ever
    torch.set_num_threads(1)
    tally, dice = Tally(), random.Random(command.seed)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as name,
        tqdm(total=command.kills, desc="killing", unit="kills", mininterval=0.5) as bar,
    ):
        folder = Path(name)
        data, base = _write_inputs(folder)
        _whole_run(folder / "first", data, base, 0)  # the first run of a process is slower
        wholes = [_whole_run(folder / f"whole-{kind}", data, base, kind) for kind in range(len(KINDS))]
        while tally.kills < command.kills:
            kind = tally.finished % len(KINDS)
            expected, seconds = wholes[kind]
            run = _options(folder / "run", data, base, kind)
            _kill_until_finished(run, seconds=seconds, kills=command.kills, dice=dice, tally=tally, bar=bar)
            _check_finished(run, expected, tally)
    print(
        f"{tally.kills} kills, {tally.finished} runs finished, {len(tally.torn)} torn files, {len(tally.different)} results "
        f"that differ; a killed process gained {statistics.mean(tally.gained):.1f} steps on average"
    )
    if tally.torn or tally.different:
        raise Failure("\n  ".join(["not everything survived:", *tally.torn, *tally.different]))


def _write_inputs(folder: Path) -> tuple[Path, Path]:
    data, base = folder / "sentences.csv", folder / "base"
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "kind"), *tiny_texts(160)])
    base.mkdir()
    write_base(base)
    return data, base


def _options(output: Path, data: Path, base: Path, kind: int) -> Finetune:
    return options(output, data, base, **(SETTINGS | KINDS[kind]))


def _whole_run(output: Path, data: Path, base: Path, kind: int) -> tuple[dict[str, Any], float]:
    """The result of a run that nobody kills, and its seconds. In this process, which so loads what the children need."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        started = time.monotonic()
        finetune(_options(output, data, base, kind))
    return result_of(output), time.monotonic() - started


def _kill_until_finished(
    run: Finetune, *, seconds: float, kills: int, dice: random.Random, tally: Tally, bar: tqdm[NoReturn]
) -> None:
    """Give the command of `run` again and again; when enough were killed, the last process is let be."""
    log, steps = run.output.with_name("log"), 0
    while not run.output.exists():
        enough = tally.kills >= kills
        status = _wait(_fork(run, log), math.inf if enough else time.monotonic() + dice.uniform(0, seconds))
        if status is None:
            tally.kills += 1
            bar.update()
            reached = _steps(run, tally)
            tally.gained += [] if reached is None else [reached - steps]
            steps = reached or steps
        elif status:
            raise Failure(f"a training that nobody killed ended with status {status}:\n{log.read_text()[-2000:]}")


def _fork(run: Finetune, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        finetune(run)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int, deadline: float) -> int | None:
    """The status that `child` ended with; None when it lived until `deadline` and was killed."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else status


def _steps(run: Finetune, tally: Tally) -> int | None:
    """Optimizer steps in the saved state of `run`; None when it has none, or is finished. A torn state is noted."""
    state = state_folder(run.output) / STATE_FILE
    if not state.exists() or run.output.exists():
        return None
    try:
        tensors, _ = load_state(state)
    except UsageError as error:
        tally.torn.append(f"after kill {tally.kills}: {error}")
        raise Failure(f"a torn state: {tally.torn[-1]}") from error
    return max(int(tensor) for name, tensor in tensors.items() if name.startswith("optimizer.") and name.endswith(".step"))


def _check_finished(run: Finetune, expected: dict[str, Any], tally: Tally) -> None:
    """Compare a finished run with the one that nobody killed, and remove it."""
    tally.finished += 1
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        finetune(run)  # finished already: clears away the state where the last kill came before that
    try:
        load_checkpoint(run.output)
        found = result_of(run.output)
    except (UsageError, OSError, KeyError, StopIteration) as error:
        tally.torn.append(f"run {tally.finished}, after kill {tally.kills}: {error!r}")
        found = expected
    tally.different += [f"run {tally.finished}: {name}" for name in expected if found[name] != expected[name]]
    shutil.rmtree(run.output)
    left = [path.name for path in run.output.parent.iterdir() if run.output.name in path.name]
    tally.torn += [f"run {tally.finished} left {name}" for name in left]


if __name__ == "__main__":
    run_command(lambda: chaos(tyro.cli(Chaos, prog="python -m tests.training.chaos", description=__doc__)))
