"""What a server answers when it is offered more than it can do: goodput, refusals, and how soon it is itself again.

    python -m tests.serving.overload --output docs/measurements/overload.json

Open loop: requests are sent at fixed times whatever the answers do. Capacity is the goodput of a closed loop just before.
The rounds go up and down the factors in turn, so that a machine that slows down meanwhile slows all of them down.
Goodput counts answers within the objective, from the time that the request was due. The generator runs on the server's cores:
it speaks HTTP, which costs it less than gRPC (`--protocol grpc`), what it takes is measured as well, and the peak is also
compared with that share taken off. From twice the capacity on, goodput has to keep `OF_PEAK` of its best and the server has to
be itself again after `RECOVERY_S`; else the exit code is 1.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from contract.command import Failure, UsageError, run_command
from contract.files import write_json
from serving.state import ServerState, read_state
from serving.stubs import find_children, read_status
from tests.served import deployed, serving
from tests.serving.embedded import embedded_release, texts_of_tokens
from tests.serving.http_load import HttpGenerator, http_request
from tests.serving.load import OK, Generator, Sent, request_bytes
from tests.serving.processes import server_pid
from tests.serving.timeline import Rows, entries

CLOSED_TEXTS = 128
"""Texts under way while the capacity is measured: two full batches, so that the engine never waits and nobody is refused."""
REST_FACTOR = 0.5
OF_PEAK, RECOVERY_S = 0.9, 2.0
REFUSALS = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "503", "429"}


@dataclass(frozen=True, kw_only=True)
class Overload:
    """Measure a server under more load than it can carry."""

    output: Path | None = None
    """JSON file to write."""
    repository: Path | None = None
    """Deployed repository of a running server; the embedded model, served for this measurement, when left out."""
    factors: tuple[float, ...] = (0.5, 0.8, 1.0, 2.0, 5.0, 10.0)
    """Offered load in multiples of the capacity."""
    rounds: int = 3
    """How often each of them is offered; figures are of all rounds together."""
    seconds: float = 10.0
    """Length of each phase."""
    protocol: Literal["http", "grpc"] = "http"
    """What the requests travel in."""
    texts: int = 8
    """Texts of a request, 1 to 64."""
    tokens: int = 32
    """Tokens of a text, about."""
    objective_ms: float = 1500.0
    """An answer later than this is no good answer."""

    def __post_init__(self) -> None:
        if not 1 <= self.texts <= 64:
            raise UsageError(f"--texts is {self.texts}; it must be in 1 to 64")
        for name in ("rounds", "seconds"):
            if not getattr(self, name) >= 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Phase:
    """A stretch of the load."""

    name: str
    """What the timeline calls it; nothing where it is no step up."""
    seconds: float
    sent: Sequence[Sent]
    factor: float = 0.0
    """Of the capacity, that was offered; 0 where that is not what is measured."""
    cores: Mapping[str, float] = field(default_factory=dict)
    """That each process took."""
    recovery_s: float = 0.0


def timeline(phases: Sequence[Phase], objective_s: float) -> Rows:
    """The phases one after the other, without the pauses in which the last answers of one were waited for."""
    good: list[tuple[float, float]] = []
    counted: dict[str, list[float]] = {"failed": [], "refused": []}
    events, start = [], 0.0
    for phase in phases:
        events += [(start, phase.name)] if phase.name else []
        for one in phase.sent:
            if is_good(one, objective_s):
                good.append((start + one.at_s, one.latency_s))
            else:
                counted["refused" if is_refused(one) else "failed"].append(start + one.at_s)
        start += phase.seconds
    return entries([(0.0, start)], good, counted, events)


def is_good(one: Sent, objective_s: float) -> bool:
    """Whether it was answered within the objective."""
    return one.code == OK and one.latency_s <= objective_s


def is_refused(one: Sent) -> bool:
    """Whether the server said at once that it has too much to do."""
    return one.code in REFUSALS and "overloaded" in one.message


def summarise(sent: Sequence[Sent], seconds: float, objective_s: float) -> dict[str, Any]:
    """Goodput, refusals by code and the times of both, of one phase."""
    good = [one.latency_s for one in sent if is_good(one, objective_s)]
    refused = [one for one in sent if is_refused(one)]
    others = Counter(f"{one.code}: {one.message[:120]}" for one in sent if one.code != OK and not is_refused(one))
    return {
        "offered_per_s": len(sent) / seconds,
        "goodput_per_s": len(good) / seconds,
        "late": sum(one.code == OK for one in sent) - len(good),
        "refused": len(refused),
        "refusal_codes": dict(Counter(one.code for one in refused)),
        "errors": dict(others),
        "answer_ms": _percentiles(good),
        "refusal_ms": _percentiles([one.latency_s for one in refused]),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {name: round(1000 * cuts[place], 1) for name, place in (("p50", 49), ("p95", 94), ("p99", 98))}


def recovery_s(rest: Sequence[Sent], objective_s: float) -> float:
    """After an overload: when the last request was due that was not answered well."""
    return max((one.at_s for one in rest if not is_good(one, objective_s)), default=0.0)


def cpu_seconds(state: ServerState) -> defaultdict[str, float]:
    """CPU time used so far by the generator, the server, the stubs of each model, and by the whole machine."""
    pid = server_pid(state) or 0
    server = read_status(pid)
    used = defaultdict(float, generator=time.process_time(), tritonserver=server[1] if server else 0.0)
    for stub in find_children(pid).stubs:
        used[stub.model] += stub.cpu_s
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]  # user to steal
    used["machine"] = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks
    return used


async def overloaded(
    generator: Generator, rate: float, seconds: float, state: ServerState
) -> tuple[list[Sent], dict[str, float]]:
    """An open loop, and the cores that each process, and all others, took meanwhile, until the last request was due."""
    before = cpu_seconds(state)
    sending = asyncio.create_task(generator.open_loop(rate, seconds))
    await asyncio.sleep(seconds)
    after = cpu_seconds(state)
    cores = {name: round((after[name] - before[name]) / seconds, 3) for name in after}
    machine = cores.pop("machine")
    return await sending, cores | {"others": round(max(0.0, machine - sum(cores.values())), 3)}


def pooled(phases: Sequence[Phase], objective_s: float) -> dict[str, Any]:
    """One factor's phases of all rounds: sums and means, the slowest recovery, and the rounds' least and greatest goodput."""
    seconds = sum(phase.seconds for phase in phases)
    found = summarise([one for phase in phases for one in phase.sent], seconds, objective_s)
    each = [sum(is_good(one, objective_s) for one in phase.sent) / phase.seconds for phase in phases]
    cores = {name: round(statistics.fmean(phase.cores[name] for phase in phases), 3) for name in phases[0].cores}
    spread = {"least_goodput_per_s": min(each), "greatest_goodput_per_s": max(each)}
    recovery = {"recovery_s": round(max(phase.recovery_s for phase in phases), 2)}
    return {"factor": phases[0].factor, "cores": cores} | found | spread | recovery


def compare_with_peak(phases: Sequence[dict[str, Any]], cores: int) -> None:
    """Add to each phase its goodput relative to the best, as it is and per core that the generator left."""
    left = {"of_peak": [cores] * len(phases), "of_peak_per_core": [cores - phase["cores"]["generator"] for phase in phases]}
    for key, shares in left.items():
        goodput = [phase["goodput_per_s"] / share for phase, share in zip(phases, shares, strict=True)]
        for phase, value in zip(phases, goodput, strict=True):
            phase[key] = round(value / max(goodput), 3)


def failures(phases: Sequence[dict[str, Any]]) -> list[str]:
    """What was missed at twice the capacity and beyond; empty when nothing was."""
    missed = []
    for phase in phases:
        if phase["factor"] >= 2:
            if phase["of_peak"] < OF_PEAK:
                missed.append(f"at {phase['factor']:g}x goodput is {phase['of_peak']:.0%} of its peak, not {OF_PEAK:.0%}")
            if phase["recovery_s"] > RECOVERY_S:
                missed.append(f"after {phase['factor']:g}x it took {phase['recovery_s']:g} s to recover, not {RECOVERY_S:g}")
    return missed


def open_generator(options: Overload, state: ServerState) -> Generator:
    """What sends the same request again and again."""
    texts = texts_of_tokens(options.texts, options.tokens)
    if options.protocol == "http":
        return HttpGenerator(state.http_url, http_request(texts), timeout_s=30)
    return Generator(state.grpc_url, request_bytes(texts), timeout_s=30)


async def measure(options: Overload, state: ServerState) -> dict[str, Any]:
    """All phases against a server."""
    objective_s = options.objective_ms / 1000
    generator = open_generator(options, state)
    try:
        callers = max(2, CLOSED_TEXTS // options.texts)
        await generator.closed_loop(callers, 2.0)
        closed = await generator.closed_loop(callers, options.seconds)
        capacity = sum(one.code == OK for one in closed) / options.seconds
        if capacity == 0:
            told = Counter(f"{one.code}: {one.message[:120]}" for one in closed).most_common(1)
            raise Failure(f"nothing was answered while the capacity was measured: {told[0][0] if told else 'nothing was sent'}")
        load = [Phase("capacity", options.seconds, closed)]
        rest_s = min(5.0, options.seconds)
        turns = [factor for turn in range(options.rounds) for factor in options.factors[:: -1 if turn % 2 else 1]]
        for factor in tqdm(turns, desc="phases", mininterval=0.5):
            sent, cores = await overloaded(generator, factor * capacity, options.seconds, state)
            rest = await generator.open_loop(REST_FACTOR * capacity, rest_s)
            load.append(Phase(f"{factor:g}x", options.seconds, sent, factor, cores, recovery_s(rest, objective_s)))
            load.append(Phase("", rest_s, rest))
    finally:
        await generator.close()
    phases = [pooled([phase for phase in load if phase.factor == factor], objective_s) for factor in options.factors]
    compare_with_peak(phases, len(os.sched_getaffinity(0)))
    return {"capacity_per_s": capacity, "phases": phases, "missed": failures(phases), "timeline": timeline(load, objective_s)}


def overload(options: Overload) -> None:
    """Run the command; see the module docstring."""
    with ExitStack() as stack:
        if options.repository is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            state = stack.enter_context(serving(deployed(folder, embedded_release(folder / "release"))))
        else:
            running = read_state(options.repository)
            if running is None:
                raise UsageError(f"no server serves {options.repository}; python -m serving starts one")
            state = running
        measured = asyncio.run(measure(options, state))
    print(f"capacity {measured['capacity_per_s']:.1f} requests/s of {options.texts} texts of about {options.tokens} tokens")
    for phase in measured["phases"]:
        print(
            f"{phase['factor']:>5}x  goodput {phase['goodput_per_s']:7.1f}/s ({phase['of_peak']:.0%} of peak, "
            f"{phase['of_peak_per_core']:.0%} per core left, rounds {phase['least_goodput_per_s']:.1f} to "
            f"{phase['greatest_goodput_per_s']:.1f})  "
            f"late {phase['late']}  refused {phase['refused']} {phase['refusal_codes']} in {phase['refusal_ms']} ms  "
            f"answers {phase['answer_ms']} ms  recovery {phase['recovery_s']} s  "
            f"cores {phase['cores']}  errors {phase['errors']}"
        )
    print(f"targets missed: {'; '.join(measured['missed']) or 'none'}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        facts = {"date": datetime.now(UTC).date().isoformat(), "cores": len(os.sched_getaffinity(0))}
        facts |= {"base": "all-MiniLM-L6-v2 with a new head", "engine": "onnxruntime fp32"}  # embedded_release's
        facts |= {"texts": options.texts, "tokens": options.tokens, "objective_ms": options.objective_ms}
        facts |= {"rounds": options.rounds, "seconds": options.seconds, "protocol": options.protocol}
        write_json(options.output, facts | measured)
        print(f"wrote {options.output}")
    if measured["missed"]:
        raise Failure("; ".join(measured["missed"]))


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run_command(lambda: overload(tyro.cli(Overload, prog="python -m tests.serving.overload", description=__doc__)))
