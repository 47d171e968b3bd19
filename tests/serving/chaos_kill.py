"""Kill a server and its python stubs under load, again and again, and count what clients notice of it.

    python -m tests.serving.chaos_kill --kills 60 --output docs/measurements/chaos-kill.json

In turn: SIGKILL and SIGSTOP of the engine's and of the tokenizer's process, SIGKILL of tritonserver. Clients retry with the
library's policy; an error that reaches one of them is counted. Back means that a request without retries is answered.
"""

from __future__ import annotations

import os
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
from serving.supervisor import MAX_DEAD
from tests.served import deployed, serving
from tests.serving.embedded import embedded_release
from tests.serving.processes import answers, descriptors, leftovers, server_pid, stub_of, wait_for

SERVER = "server"
KINDS = [(model, number) for number in (signal.SIGKILL, signal.SIGSTOP) for model in (ENGINE, TOKENIZER)]
KINDS.append((SERVER, signal.SIGKILL))
PATIENT = RetryPolicy(attempts=10_000, budget=100_000, longest_wait_s=0.5, retry_rejected=True)  # the deadline alone ends it
CALL_TIMEOUT_S = 240.0


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
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self.threads = [threading.Thread(target=self._call, args=(number,)) for number in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def _call(self, number: int) -> None:
        texts = [f"a cat under a tree, says caller {number}", "the old rose near the house"]
        with connect(self.url, timeout_s=CALL_TIMEOUT_S, retry=PATIENT) as classifier:
            while not self.stopping.wait(0.005):
                try:
                    self.answered[classifier.classify(texts)[0].release] += 1
                except ClassifierError as error:
                    self.errors[f"{type(error).__name__}: {error}"[:300]] += 1


def strike(state: ServerState, model: str, number: signal.Signals) -> float:
    """Send a signal to one process; seconds until it was replaced and a request without retries was answered."""
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
    os.kill(victim, number)
    wait_for(lambda: target() not in {None, victim}, f"{model} {victim} replaced after {number.name}")
    wait_for(lambda: answers(state), f"an answer after {number.name} of {model}")
    return time.monotonic() - started


def measure(options: ChaosKill, state: ServerState) -> dict[str, Any]:
    """Strike `options.kills` times under load."""
    back: dict[str, list[float]] = {}
    before = {"supervisor": descriptors(state.pid), "server": descriptors(server_pid(state) or 0)}
    with Load(state.grpc_url, options.clients) as load:
        wait_for(lambda: load.answered.total() > 0 or bool(load.errors), "a first answer")
        for model, number in tqdm(islice(cycle(KINDS), options.kills), total=options.kills, desc="kills", mininterval=0.5):
            back.setdefault(f"{number.name} {model}", []).append(strike(state, model, number))
        struck = load.answered.total()
        wait_for(lambda: load.answered.total() > struck + options.clients or bool(load.errors), "answers after the last kill")
    wait_for(lambda: not leftovers(state), "no shared memory of dead stubs")
    wait_for(lambda: answers(state), "an answer at the end")
    return {
        "kills": options.kills,
        "answered": load.answered.total(),
        "errors": dict(load.errors),
        "back_s": {
            kind: {"median": round(statistics.median(times), 2), "max": round(max(times), 2), "count": len(times)}
            for kind, times in back.items()
        },
        "leftovers": leftovers(state),
        "descriptors_before": before,
        "descriptors_after": {"supervisor": descriptors(state.pid), "server": descriptors(server_pid(state) or 0)},
    }


def check(measured: dict[str, Any]) -> None:
    """Raise `Failure` for an error that reached a client, or for what was left behind."""
    if measured["errors"]:
        raise Failure(f"errors reached clients: {measured['errors']}")
    before, after = measured["descriptors_before"], measured["descriptors_after"]
    # What varies: sockets of probes that are under way, and of the server, instances of stubs that died owing answers.
    for process, slack in (("supervisor", 6), ("server", MAX_DEAD + 12)):
        if after[process] > before[process] + slack:
            raise Failure(f"the {process} had {before[process]} descriptors and has {after[process]}")


def chaos_kill(options: ChaosKill) -> None:
    """Run the command; see the module docstring."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        release = options.release or embedded_release(folder / "release")
        state = stack.enter_context(serving(deployed(folder, release), "--restarts", str(options.kills + 1)))
        measured = measure(options, state)
    for kind, times in measured["back_s"].items():
        print(f"{kind:<24} {times['count']:>4} times, back after {times['median']:.2f} s (at most {times['max']:.2f} s)")
    counts = f"{measured['answered']} answers, {sum(measured['errors'].values())} errors"
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
