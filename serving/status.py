"""What a running server is doing, on one screen: release, rates, times by step, refusals, backlog, memory, processes.

    python -m serving.status --repository build/model_repository            drawn again every two seconds, until Ctrl-C
    python -m serving.status --repository build/model_repository --once     once, for scripts; exit code 1 when it is not well

Read from the server's metrics, from /proc on this machine, and from the supervisor's events. Rates are over the time between
two readings.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from contract.command import Failure, UsageError, run_command
from contract.tensors import CLASSIFIER, STEPS, TOKENIZER
from serving.events import events_path, read_events
from serving.probe import OK, ask, infer
from serving.repository import DEFAULT_REPOSITORY, Repository
from serving.state import ServerState, read_state
from serving.stubs import ZOMBIE, Children, child_pids, find_children, read_status

ONCE_S = 1.0
TIMEOUT_S = 5.0
EVENTS_SHOWN = 5
CLEAR = "\033[H\033[J"

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Series = tuple[str, frozenset[tuple[str, str]]]
Metrics = dict[Series, float]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Show what a running server is doing."""

    repository: Path = DEFAULT_REPOSITORY
    """Deployed repository whose server is shown."""
    once: bool = False
    """Show it once, over one second, and leave: 0 when all is well, 1 when not."""
    every_s: float = 2.0
    """Time between two screens."""
    log: Path | None = None
    """The server's log, beside which the events are; REPOSITORY.log when left out."""

    def __post_init__(self) -> None:
        if not self.every_s >= 0.2:
            raise UsageError(f"--every-s is {self.every_s}; it must be at least 0.2")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Everything that is shown, at one moment."""

    at_s: float
    answers: bool
    """Whether the classifier answered a text just now, or said that it is overloaded."""
    metrics: Metrics
    server: int | None
    children: Children


def parse_metrics(text: str) -> Metrics:
    """Prometheus' text format: (name, labels) -> value. Lines that are no samples are passed over."""
    found: Metrics = {}
    for line in text.splitlines():
        if sample := _SAMPLE.match(line):
            found[sample[1], frozenset(_LABEL.findall(sample[2] or ""))] = float(sample[3])
    return found


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum over the series of `name` that have these labels."""
    wanted = set(labels.items())
    return sum(value for (series, has), value in metrics.items() if series == name and wanted <= has)


def read_server(state: ServerState) -> Reading:
    """Ask the server. Raises `Failure` when its metrics do not answer."""
    answer = infer(state.http_url, CLASSIFIER, None, TIMEOUT_S, features=state.features)
    metrics = ask(state.metrics_url, "/metrics", None, TIMEOUT_S)
    server = find_server(state.pid)
    if metrics.status != OK:
        raise Failure(f"the server at {state.metrics_url} shows no metrics: {metrics.message}; is it starting again?")
    return Reading(
        at_s=time.monotonic(),
        answers=answer.status == OK or "overloaded" in answer.message,
        metrics=parse_metrics(metrics.body),
        server=server,
        children=find_children(server) if server else Children(stubs=(), dead=0),
    )


def find_server(supervisor: int) -> int | None:
    """The living tritonserver below a supervisor."""
    for pid in child_pids(supervisor):
        status = read_status(pid)
        if status is not None and status[0] != ZOMBIE and Path(f"/proc/{pid}/exe").resolve().name == "tritonserver":
            return pid
    return None


def memory_mib(pid: int | None) -> float:
    """Proportional set size of a process in MiB; 0 when it is gone, or not ours to ask."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def step_line(model: str, version: int, before: Reading, now: Reading) -> str:
    """One step: requests a second, and where their time went, in ms a request."""
    labels = {"model": model, "version": str(version)}
    grown = {
        name: total(now.metrics, f"nv_inference_{name}", **labels) - total(before.metrics, f"nv_inference_{name}", **labels)
        for name in ("request_success", "exec_count", "count", "queue_duration_us", "compute_infer_duration_us")
    }
    requests, calls = max(grown["request_success"], 1), max(grown["exec_count"], 1)
    waited_ms, computed_ms = (grown[f"{name}_duration_us"] / requests / 1000 for name in ("queue", "compute_infer"))
    pending = total(now.metrics, "nv_inference_pending_request_count", **labels)
    return (
        f"  {model:<16} {grown['request_success'] / (now.at_s - before.at_s):8.1f} requests/s   waited {waited_ms:8.2f} ms"
        f"   computed {computed_ms:8.2f} ms   {grown['count'] / calls:5.1f} texts a call   {pending:.0f} waiting"
    )


def show(
    repository: Repository, state: ServerState, before: Reading, now: Reading, events: Sequence[Mapping[str, object]]
) -> str:
    """The screen."""
    pinned, seconds = repository.pinned() or 0, now.at_s - before.at_s

    def rate(name: str, **labels: str) -> float:
        return (total(now.metrics, name, **labels) - total(before.metrics, name, **labels)) / seconds

    padding = rate("bert_engine_padding_tokens_total")
    wasted = padding / max(rate("bert_engine_tokens_total") + padding, 1)
    lines = [
        f"{repository.release(pinned) if pinned else 'no release'} serves as version {pinned} of {repository.versions()}"
        f"   {'answers' if now.answers else 'DOES NOT ANSWER'}   gRPC {state.grpc_url}   HTTP {state.http_url}",
        "",
        *(step_line(step, pinned, before, now) for step in STEPS),
        "",
        f"  {rate('bert_texts_total'):.1f} texts/s   {rate('bert_tokens_total'):.0f} tokens/s   "
        f"{rate('bert_truncated_total'):.1f} cut/s   {wasted:.1%} of the engine's work is padding",
        f"  refused {rate('bert_refused_total', reason='overloaded'):.1f}/s overloaded, "
        f"{rate('bert_refused_total', reason='invalid'):.1f}/s invalid",
        f"  failed {rate('nv_inference_request_failure', model=CLASSIFIER):.1f}/s",
        "",
        f"  tritonserver {now.server or 'IS GONE'}   {memory_mib(now.server):.0f} MiB   {now.children.dead} ended stubs held",
        *(
            f"  {stub.model} {stub.version}   process {stub.pid} {stub.state}   {memory_mib(stub.pid):.0f} MiB"
            for stub in now.children.stubs
        ),
        "",
        *(f"  {' '.join(str(value) for value in event.values())}"[:160] for event in events[-EVENTS_SHOWN:]),
    ]
    return "\n".join(lines)


def is_well(repository: Repository, now: Reading) -> bool:
    """Whether the classifier answers and the pinned tokenizer runs; an engine on TensorRT has no process to look for."""
    running = {(stub.model, stub.version) for stub in now.children.stubs}
    return now.answers and (TOKENIZER, repository.pinned()) in running


def status(options: Status) -> None:
    """Run the command; see the module docstring."""
    repository = Repository(options.repository)
    repository.check()
    state = read_state(options.repository)
    if state is None:
        raise UsageError(
            f"no server serves {options.repository}; python -m serving --repository {options.repository} starts one"
        )
    log = options.log or options.repository.with_name(options.repository.name + ".log")
    before = read_server(state)
    while True:
        time.sleep(ONCE_S if options.once else options.every_s)
        try:
            now = read_server(state)
        except Failure as failure:
            if options.once:
                raise
            print(failure, flush=True)  # the supervisor brings it back, and then there is most to see
            continue
        if now.server != before.server:
            before = now  # another one, whose counters begin anew
            continue
        events = read_events(events_path(log))
        screen = show(repository, state, before, now, events)
        print(screen if options.once or not sys.stdout.isatty() else CLEAR + screen, flush=True)
        if options.once:
            break
        before = now
    if not is_well(repository, now):
        raise Failure("the server is not well: see above, and its log")


if __name__ == "__main__":
    run_command(lambda: status(tyro.cli(Status, prog="python -m serving.status", description=__doc__)))
