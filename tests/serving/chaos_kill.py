"""Kill a server and its python stubs under load, again and again, and count what clients notice of it.

    python -m tests.serving.chaos_kill --kills 60 --output docs/measurements/chaos-kill.json

In turn: SIGKILL and SIGSTOP of the engine's and of the tokenizer's process, a call of `execute` in each of them that never
returns, SIGKILL of tritonserver. Clients retry with the library's policy as it is, `RetryPolicy()`; an error that reaches one
of them fails the run. Back means that a request without retries is answered; a python step must be so within `BACK_S`. The next
blow falls when every caller was answered again.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from clients import ClassifierError, RetryPolicy, connect
from contract.command import Failure, UsageError, run_command
from contract.files import write_json
from contract.tensors import ENGINE, TOKENIZER
from serving.state import ServerState
from serving.watch import MAX_DEAD
from tests.served import deployed, serving
from tests.serving.embedded import embedded_release
from tests.serving.faults import vouch
from tests.serving.processes import answers, descriptors, leftovers, server_pid, stub_of, wait_for

SERVER = "server"
KILL, STOP, HANG = "SIGKILL", "SIGSTOP", "hang of"
KINDS = [(model, blow) for blow in (KILL, STOP, HANG) for model in (ENGINE, TOKENIZER)] + [(SERVER, KILL)]
CALL_TIMEOUT_S = 60.0
BACK_S = 5.0
"""A python step that died or hangs must be back after so long."""
HANGING = """

_execute = TritonPythonModel.execute


def _hang_when_told(self, requests):
    try:
        Path(__file__).with_name("hang").unlink()
    except FileNotFoundError:
        return _execute(self, requests)
    time.sleep(1e9)


TritonPythonModel.execute = _hang_when_told
"""


@dataclass(frozen=True, kw_only=True)
class ChaosKill:
    """Kill a server's processes under load."""

    kills: int = 60
    """How often something is killed."""
    output: Path | None = None
    """JSON file to write."""
    release: Path | None = None
    """Release to serve; one of the embedded model when left out."""
    clients: int = 4
    """Callers, each with one request of two texts under way."""

    def __post_init__(self) -> None:
        if self.kills < 1:
            raise UsageError(f"--kills is {self.kills}; it must be at least 1")
        if self.clients < 1:
            raise UsageError(f"--clients is {self.clients}; it must be at least 1")


@dataclass
class Load:
    """Callers that classify without pause until they are told to stop."""

    url: str
    clients: int
    stopping: threading.Event = field(default_factory=threading.Event)
    answered: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    waited_s: dict[int, list[float]] = field(default_factory=dict)
    """How long each caller waited for each answer, its retries included."""
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self.waited_s = {number: [] for number in range(self.clients)}
        self.threads = [threading.Thread(target=self._call, args=(number,)) for number in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def wait_until_all_are_answered(self) -> None:
        """Wait until every caller has an answer more than now, or an error reached one."""
        before = {number: len(waited) for number, waited in self.waited_s.items()}
        wait_for(
            lambda: bool(self.errors) or all(len(waited) > before[number] for number, waited in self.waited_s.items()),
            "an answer for every caller",
        )

    def _call(self, number: int) -> None:
        texts = [f"a cat under a tree, says caller {number}", "the old rose near the house"]
        with connect(self.url, timeout_s=CALL_TIMEOUT_S, retry=RetryPolicy()) as classifier:
            while not self.stopping.wait(0.005):
                started = time.monotonic()
                try:
                    self.answered[classifier.classify(texts)[0].release] += 1
                    self.waited_s[number].append(time.monotonic() - started)
                except ClassifierError as error:
                    self.errors[f"{type(error).__name__}: {error}"[:300]] += 1


def hangable(release: Path, target: Path) -> Path:
    """A copy of a release whose steps hang in their next call once a file `hang` lies beside their model.py."""
    shutil.copytree(release, target)
    for model in (ENGINE, TOKENIZER):
        path = target / model / "model.py"
        path.write_text(path.read_text(encoding="utf-8") + HANGING, encoding="utf-8")
    return vouch(target)


def strike(state: ServerState, repository: Path, model: str, blow: str) -> float:
    """Hit one process; seconds until it was replaced and a request without retries was answered."""
    wait_for(lambda: bool(server_pid(state) and stub_of(state, ENGINE) and stub_of(state, TOKENIZER)), "all processes run")

    def target() -> int | None:
        if model == SERVER:
            return server_pid(state)
        stub = stub_of(state, model)
        return stub.pid if stub else None

    victim = target()
    if victim is None:
        raise AssertionError(f"{model} has no process")
    started = time.monotonic()
    if blow == HANG:
        (repository / model / "1" / "hang").touch()
    else:
        os.kill(victim, signal.Signals[blow])
    wait_for(lambda: target() not in {None, victim}, f"{model} {victim} replaced after {blow}")
    # Not for long: one that meets the dying process may hang on it while all others are answered.
    wait_for(lambda: answers(state, timeout_s=1.0), f"an answer after {blow} {model}")
    return time.monotonic() - started


def measure(options: ChaosKill, state: ServerState, repository: Path) -> dict[str, Any]:
    """Strike `options.kills` times under load."""
    back: dict[str, list[float]] = {}
    before = {"supervisor": descriptors(state.pid), "server": descriptors(server_pid(state) or 0)}
    with Load(state.grpc_url, options.clients) as load:
        load.wait_until_all_are_answered()
        for model, blow in tqdm(islice(cycle(KINDS), options.kills), total=options.kills, desc="kills", mininterval=0.5):
            back.setdefault(f"{blow} {model}", []).append(strike(state, repository, model, blow))
            load.wait_until_all_are_answered()
    wait_for(lambda: not leftovers(state), "no shared memory of dead stubs")
    wait_for(lambda: answers(state), "an answer at the end")
    return {
        "kills": options.kills,
        "answered": load.answered.total(),
        "errors": dict(load.errors),
        "longest_wait_of_a_caller_s": round(max(max(waited) for waited in load.waited_s.values()), 2),
        "back_s": {
            kind: {"median": round(statistics.median(times), 2), "max": round(max(times), 2), "count": len(times)}
            for kind, times in back.items()
        },
        "leftovers": leftovers(state),
        "descriptors_before": before,
        "descriptors_after": {"supervisor": descriptors(state.pid), "server": descriptors(server_pid(state) or 0)},
    }


def check(measured: dict[str, Any], back_s: float = BACK_S) -> None:
    """Raise `Failure` for an error that reached a client, a step that was not back in time, or what was left behind."""
    if measured["errors"]:
        raise Failure(f"errors reached clients: {measured['errors']}")
    for kind, times in measured["back_s"].items():
        if SERVER not in kind and times["max"] > back_s:
            raise Failure(f"{kind}: back after {times['max']} s; allowed are {back_s:g}")
    if measured["leftovers"]:
        raise Failure(f"shared memory was left behind: {measured['leftovers']}")
    before, after = measured["descriptors_before"], measured["descriptors_after"]
    # What varies: sockets of probes that are under way, and of the server, instances of stubs that died owing answers.
    for process, slack in (("supervisor", 6), ("server", MAX_DEAD + 12)):
        if after[process] > before[process] + slack:
            raise Failure(f"the {process} had {before[process]} descriptors and has {after[process]}")


def chaos_kill(options: ChaosKill) -> None:
    """Run the command; see the module docstring."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        release = hangable(options.release or embedded_release(folder / "release"), folder / "hangable")
        repository = deployed(folder, release)
        state = stack.enter_context(serving(repository, "--restarts", str(options.kills + 1)))
        measured = measure(options, state, repository.path)
    for kind, times in measured["back_s"].items():
        print(f"{kind:<24} {times['count']:>4} times, back after {times['median']:.2f} s (at most {times['max']:.2f} s)")
    counts = f"{measured['answered']} answers, the slowest after {measured['longest_wait_of_a_caller_s']} s, "
    counts += f"{sum(measured['errors'].values())} errors"
    left = f"{len(measured['leftovers'])} regions left"
    print(f"{counts}, {left}; descriptors {measured['descriptors_before']} -> {measured['descriptors_after']}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        facts = {
            "date": datetime.now(UTC).date().isoformat(),
            "cores": len(os.sched_getaffinity(0)),
            "clients": options.clients,
        }
        write_json(options.output, facts | measured)
        print(f"wrote {options.output}")
    check(measured)


if __name__ == "__main__":
    run_command(lambda: chaos_kill(tyro.cli(ChaosKill, prog="python -m tests.serving.chaos_kill", description=__doc__)))
