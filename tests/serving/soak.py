"""Many requests against one server: its memory, its stubs' memory and its descriptors must not grow with them.

    python -m tests.serving.soak --requests 1000000 --output docs/measurements/soak.json

Texts of many lengths, some too long, some invalid, in requests of 1 to 8. After a tenth of the requests, in which caches fill,
memory is read at regular counts; its growth over the run is the slope of a straight line through the readings.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from contract.command import Failure, UsageError, run_command
from contract.files import write_json
from serving.state import ServerState
from serving.stubs import find_children
from tests.served import deployed, serving
from tests.serving.embedded import embedded_release, texts_of_tokens
from tests.serving.load import OK, Generator, request_bytes
from tests.serving.processes import descriptors, pss_kib, server_pid

READINGS = 20
CALLERS = 8
GROWTH = 0.05
"""Share of the first reading that memory may grow over the run; allocators wander by about 2 %."""
SLACK_KIB = 8192
DESCRIPTORS = 8
"""Descriptors that may be open in one reading and not in another: sockets of probes under way."""


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Send many requests and watch the server's memory."""

    requests: int = 1_000_000
    """Requests to send, at least 200."""
    output: Path | None = None
    """JSON file to write."""
    release: Path | None = None
    """Release to serve; one of the embedded model when left out."""

    def __post_init__(self) -> None:
        if self.requests < 10 * READINGS:
            raise UsageError(f"--requests is {self.requests}; it must be at least {10 * READINGS}")


def mixed_requests(count: int, *, seed: int = 0) -> list[bytes]:
    """Serialised requests of 1 to 8 texts of 3 to 300 tokens; one in twenty holds an empty text, which is refused."""
    generator = random.Random(seed)
    requests = []
    for number in range(count):
        texts = texts_of_tokens(generator.randint(1, 8), generator.choice((3, 8, 16, 32, 64, 300)))
        requests.append(request_bytes([*texts[1:], ""] if number % 20 == 19 else texts))
    return requests


def read_processes(state: ServerState) -> dict[str, dict[str, int]]:
    """Memory in KiB and descriptors of server and stubs."""
    server = server_pid(state)
    if server is None:
        raise Failure("the server ended in the middle of the soak; see its log")
    pids = {"server": server} | {stub.model: stub.pid for stub in find_children(server).stubs}
    return {name: {"pss_kib": pss_kib(pid), "descriptors": descriptors(pid), "pid": pid} for name, pid in pids.items()}


async def send(url: str, requests: Sequence[bytes], count: int) -> Counter[str]:
    """Send `count` requests, `CALLERS` at a time; how often each status came back."""
    generator = Generator(url, requests[0], timeout_s=60)
    codes: Counter[str] = Counter()
    remaining = iter(range(count))

    async def caller() -> None:
        for number in remaining:
            codes[(await generator.send(time.monotonic(), 0.0, requests[number % len(requests)])).code] += 1

    try:
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    finally:
        await generator.close()
    return codes


def growth(readings: Sequence[int]) -> float:
    """What a straight line through the readings gains from the first to the last."""
    slope = np.polyfit(np.arange(len(readings)), np.asarray(readings, np.float64), 1)[0]
    return float(slope * (len(readings) - 1))


def measure(options: Soak, state: ServerState) -> dict[str, Any]:
    """Send all requests, with a reading after each part of them."""
    requests = mixed_requests(40)
    part = options.requests // (READINGS + 2)
    codes = asyncio.run(send(state.grpc_url, requests, 2 * part))  # caches and arenas fill
    readings = [read_processes(state)]
    for _ in tqdm(range(READINGS), desc=f"soak, {part} requests each", mininterval=0.5):
        codes += asyncio.run(send(state.grpc_url, requests, part))
        readings.append(read_processes(state))
    processes = {}
    for name in readings[0]:
        memory = [reading[name]["pss_kib"] for reading in readings]
        opened = [reading[name]["descriptors"] for reading in readings]
        processes[name] = {
            "pss_mib_first": round(memory[0] / 1024, 1),
            "pss_mib_last": round(memory[-1] / 1024, 1),
            "growth_kib": round(growth(memory)),
            "descriptors_first": opened[0],
            "descriptors_last": opened[-1],
            "replaced": len({reading[name]["pid"] for reading in readings}) - 1,
        }
    return {"requests": codes.total(), "codes": dict(codes), "processes": processes}


def failures(measured: dict[str, Any]) -> list[str]:
    """What grew, ended or failed; empty when nothing did."""
    found = [f"{count} times {code}" for code, count in measured["codes"].items() if code not in {OK, "INVALID_ARGUMENT"}]
    for name, process in measured["processes"].items():
        if process["growth_kib"] > GROWTH * 1024 * process["pss_mib_first"] + SLACK_KIB:
            found.append(f"{name} grew by {process['growth_kib']} KiB from {process['pss_mib_first']} MiB")
        if process["descriptors_last"] > process["descriptors_first"] + DESCRIPTORS:
            found.append(f"{name} had {process['descriptors_first']} descriptors and has {process['descriptors_last']}")
        if process["replaced"]:
            found.append(f"{name} was replaced {process['replaced']} times")
    return found


def soak(options: Soak) -> None:
    """Run the command; see the module docstring."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        release = options.release or embedded_release(folder / "release")
        state = stack.enter_context(serving(deployed(folder, release)))
        measured = measure(options, state)
    print(f"{measured['requests']} requests: {measured['codes']}")
    for name, process in measured["processes"].items():
        memory = f"{process['pss_mib_first']:.1f} -> {process['pss_mib_last']:.1f} MiB (trend {process['growth_kib']:+d} KiB)"
        print(f"{name:<16} {memory}   descriptors {process['descriptors_first']} -> {process['descriptors_last']}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        facts = {"date": datetime.now(UTC).date().isoformat(), "cores": len(os.sched_getaffinity(0))}
        write_json(options.output, facts | measured)
        print(f"wrote {options.output}")
    if found := failures(measured):
        raise Failure("; ".join(found))


if __name__ == "__main__":
    run_command(lambda: soak(tyro.cli(Soak, prog="python -m tests.serving.soak", description=__doc__)))
