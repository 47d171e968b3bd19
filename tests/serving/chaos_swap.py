"""Swap releases under traffic, every second one bad, and count what clients notice. For the figures, not for CI:

    python -m tests.serving.chaos_swap --release build/release --swaps 1000 --output docs/measurements/chaos-swap.json
    python -m tests.serving.chaos_swap ... --seconds 140     # a piece of it; again and again, until all swaps are done

Good releases are the given one and two copies of it whose first logit is shifted, so that an answer of one release's engine
under another's name cannot hide. Clients retry nothing. Latency is measured apart from the chaos, at 40 % of what the server
answered at most: around flips, and while releases load (by the command, in a process of its own, as an operator does it).
The file's `timeline` is of the seconds in which releases were swapped; of a run in pieces, it is that of the longest piece.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro
from scipy.stats import chi2
from tqdm import tqdm

from clients import connect
from contract.command import Failure, UsageError, run_command
from contract.probes import read_probes
from contract.release import read_manifest
from contract.tensors import ENGINE
from serving.publish import publish
from serving.release_log import ReleaseLog
from serving.repository import Repository
from serving.state import ServerState
from serving.switch import promote, retire, rollback
from tests.fixtures import tiny_release
from tests.served import deployed, serving
from tests.serving.faults import FAULTS, faulty, variant
from tests.serving.processes import family_pss_mb
from tests.serving.swap_check import failures, growths
from tests.serving.swap_latency import measure_latency, sequential_p50_ms
from tests.serving.swap_record import add, begin, part_file, save
from tests.serving.timeline import Span, entries
from tests.serving.traffic import ANY, Traffic, known_answers

CHUNK = 6  # swaps between two looks at memory and cost, and between two pieces: each move once, three bad releases
TINY = "tiny"  # stands for the release's id, which is another wherever the training's last digits are
MOVES = ("publish", "rollback", "promote")


@dataclass(frozen=True, kw_only=True)
class ChaosSwap:
    """Swap releases under traffic."""

    release: Path = Path("build/release")
    """A good release, of builders.build with the ONNX engine."""
    tiny: bool = False
    """Train and build the tests' tiny model instead, in seconds: for many swaps, whose time then is that of the swaps."""
    swaps: int = 30
    """How many: half of them moves of the traffic, half attempts to publish a bad release."""
    latency: bool = True
    """Measure capacity and latency first; without it the traffic is two clients in a closed loop."""
    output: Path | None = None
    """JSON file to write."""
    seconds: float | None = None
    """End this piece of the run after about so long; the same command goes on with the rest. All at once when left out."""

    def __post_init__(self) -> None:
        if self.swaps < 2:
            raise UsageError(f"--swaps is {self.swaps}; it must be at least 2")
        if self.seconds is not None and (self.seconds <= 0 or self.output is None):
            raise UsageError(f"--seconds is {self.seconds}; it must be above 0, and --output is needed to go on beside")


class Chaos:
    """The server, the releases that come and go, and what happened."""

    def __init__(
        self, repository: Repository, state: ServerState, good: list[Path], bad: dict[str, Path], traffic: Traffic
    ) -> None:
        self.repository, self.state, self.good, self.bad, self.traffic = repository, state, good, bad, traffic
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        """What should not have happened."""
        self.events: list[tuple[float, str]] = []
        """(when it had happened on the clock of `time.monotonic`, what): moves and refusals."""
        self.loads: list[Span] = []
        """When there was traffic that releases were swapped under."""
        self._turn = 0

    def serving(self) -> str:
        """The release that answers."""
        with connect(self.state.grpc_url) as classifier:
            return classifier.classify(["which"])[0].release

    def swap(self, number: int) -> None:
        """A move of the traffic, or, every second time, an attempt to publish a bad release."""
        if number % 2:
            self._refuse(list(self.bad)[number // 2 % len(self.bad)])
        else:
            self._move(MOVES[number // 2 % len(MOVES)])

    def publish_next(self) -> None:
        """Publish the next good release that does not serve, and delete what is no longer needed."""
        serving = self.repository.release(self.repository.pinned() or 0)
        names = [read_manifest(folder).release for folder in self.good]
        folder = self.good[(names.index(serving) + 1) % len(self.good)]
        publish(folder, self.repository, gate=ANY)
        retire(self.repository, keep=0)

    def _move(self, move: str) -> None:
        if move == "publish":
            self.publish_next()
        elif move == "rollback":
            rollback(self.repository)
        else:
            promote(self.repository, max(self.repository.offered()))
        self.events.append((time.monotonic(), move))
        expected = self.repository.release(self.repository.pinned() or 0)
        self._expect(self.serving() == expected, f"{expected} does not answer after a {move}")
        self.counts[move] += 1

    def _refuse(self, fault: str) -> None:
        before = self.serving()
        try:
            publish(self.bad[fault], self.repository, gate=ANY)
        except Failure:
            self.counts["refused"] += 1
            self.events.append((time.monotonic(), f"refused {fault}"))
        else:
            self.wrong.append(f"a release with {fault} was published")
        self._expect(self.serving() == before, f"{before} no longer answers after a release with {fault}")

    def _expect(self, met: bool, otherwise: str) -> None:
        if not met:
            self.wrong.append(otherwise)


def restart_with_damage(repository: Repository, bad: Path) -> float:
    """Corrupt what lies on the disk beside the serving version, start a server, and return the seconds until it answers.

    Raises:
        AssertionError: it does not answer as the serving release.
    """
    version = repository.next_version()
    repository.admit(repository.copy_in(bad, version), version)  # never published
    serving_version = repository.pinned() or 0
    for offered in repository.offered():
        if offered != serving_version:
            (repository.path / ENGINE / str(offered) / "model.onnx").write_bytes(b"no graph at all")
    started = time.monotonic()
    with serving(repository) as state, connect(state.grpc_url) as classifier:
        release = classifier.classify(["which"])[0].release
    seconds = time.monotonic() - started
    if release != repository.release(serving_version):
        raise AssertionError(f"after the restart {release} answers")
    return seconds


def eighty_percent(capacity: float) -> dict[str, Any]:
    """Traffic of 80 % of so many requests a second: three quarters due at fixed times, one quarter waiting for its answers."""
    return {"closed": 2, "think_s": 2 / (0.2 * capacity), "rate": 0.6 * capacity, "workers": 16}


def run(options: ChaosSwap, folder: Path) -> dict[str, Any]:
    """All swaps, or a piece of them, with its files in `folder`; what was found so far, and `restart_s` after the last swap."""
    started = time.monotonic()
    part = part_file(options.output) if options.output and options.seconds else None
    found = begin(part, TINY if options.tiny else read_manifest(options.release).release, options.swaps)
    release = tiny_release(folder / TINY) if options.tiny else options.release
    shifts = {"b": 0.5, "c": 1.0}
    good = [release, *(variant(release, folder / name, name=name, shift=shifts[name]) for name in shifts)]
    bad = {fault: faulty(release, folder / fault.replace(" ", "-"), fault) for fault in FAULTS}
    texts = read_probes(release).texts
    known = known_answers(folder / "scratch", good, texts)
    repository = deployed(folder, release)
    with serving(repository) as state:
        chaos = Chaos(repository, state, good, bad, Traffic(state.grpc_url, texts, known))
        latency = found["latency"] or (measure_latency(chaos) if options.latency else {})
        piece = figures(chaos, latency)
        save(part, add(found, piece))
        ends = started + (options.seconds or math.inf)
        must, longest = latency == found["latency"], 0.0  # a piece does something, however short it is
        with tqdm(total=options.swaps, initial=found["done"], desc="swapping", unit="swaps", mininterval=0.5) as bar:
            while found["done"] + piece["done"] < options.swaps and (must or time.monotonic() + longest < ends):
                began = time.monotonic()
                piece = swap_chunk(chaos, found["done"] + piece["done"], options, piece)
                bar.update(found["done"] + piece["done"] - bar.n)
                save(part, add(found, piece))
                must, longest = False, max(longest, time.monotonic() - began)
    found = add(found, piece)
    if found["done"] == options.swaps:
        found["engine"] = read_manifest(release).engine
        found["restart_s"] = restart_with_damage(repository, bad["truncated engine"])
        if part is not None:
            part.unlink()
    return found


def swap_chunk(chaos: Chaos, start: int, options: ChaosSwap, piece: dict[str, Any]) -> dict[str, Any]:
    """The piece with the swaps from number `start` to the end of the chunk."""
    end = min(start + CHUNK, options.swaps)
    load = eighty_percent(piece["latency"]["capacity_per_s"]) if options.latency else {"closed": 2}
    with chaos.traffic.running(**load):
        began = time.monotonic()
        for number in range(start, end):
            chaos.swap(number)
        chaos.loads.append((began, time.monotonic()))
    memory = [*piece["pss_mb"], round(family_pss_mb(chaos.state.pid), 1)]
    cost = [*piece["sequential_p50_ms"], *([round(sequential_p50_ms(chaos.traffic, 1.0), 3)] if options.latency else [])]
    looked = {"looks": [len(memory)], "pss_mb": memory, "sequential_p50_ms": cost}
    return figures(chaos, piece["latency"]) | {"done": piece["done"] + end - start} | looked


def figures(chaos: Chaos, latency: dict[str, Any]) -> dict[str, Any]:
    """What a piece has counted so far."""
    answers = chaos.traffic.answers
    moves = [event["seconds"] for event in ReleaseLog(chaos.repository.path).events() if event["event"] == "rollback"]
    return {
        "done": 0,
        "pieces": 1,
        "counts": dict(chaos.counts),
        "requests": len(answers.latencies) + len(answers.failures),
        "failed": len(answers.failures),
        "mixed": len(answers.mixed),
        "slowest_rollback_s": max(moves, default=0.0),
        "wrong": [*chaos.wrong, *answers.failures[:5], *answers.mixed[:5]],
        "looks": [],
        "pss_mb": [],
        "sequential_p50_ms": [],
        "latency": latency,
        "timeline": entries(chaos.loads, answers.latencies, {"failed": answers.failed_at}, chaos.events),
    }


def failure_bound(failed: int, requests: int) -> float:
    """Below this share of requests fail, with 95 % confidence: the Poisson bound, 3/n when none of n did."""
    return float(chi2.ppf(0.95, 2 * (failed + 1)) / 2 / requests)


def report(found: dict[str, Any]) -> dict[str, Any]:
    """The finished run as it is written down, with what it missed."""
    facts: dict[str, Any] = {name: value for name, value in found.items() if name not in {"latency", "done"}}
    facts |= {"date": datetime.now(UTC).date().isoformat()}
    facts |= {"machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}}
    facts |= {"bad_releases": found["swaps"] // 2, "failure_rate_bound": failure_bound(found["failed"], found["requests"])}
    facts |= found["latency"] | {"growth": growths(found)}
    return facts | {"missed": failures(facts)}


def show(found: dict[str, Any]) -> None:
    """Print what was found so far."""
    print(
        f"{found['done']} of {found['swaps']} swaps, {found['requests']} requests: {found['failed']} failed, {found['mixed']} "
        f"mixed (so under {failure_bound(found['failed'], found['requests']):.2g} of requests fail, with 95 % confidence); "
        f"{found['counts'].get('refused', 0)} of {found['done'] // 2} bad releases refused; "
        f"slowest rollback {found['slowest_rollback_s']:.2f} s"
    )
    if latency := found["latency"]:
        print(
            f"at 40 % load: p99 {latency['steady_p99_ms']:.1f} ms steady, {latency['flip_ratio']:.2f} times that within 1 s of "
            f"a flip, {latency['loading_ratio']:.2f} times while a release loads ({latency['loading_s']:.1f} s)"
        )
        print(f"along the swaps: {found['pss_mb']} MB of memory, {found['sequential_p50_ms']} ms a request alone")


def main(options: ChaosSwap) -> None:
    """Run, print, write. Raises `Failure` for what was wrong so far, and for what the finished run missed."""
    with tempfile.TemporaryDirectory(prefix="chaos-swap-") as folder:
        found = run(options, Path(folder))
    show(found)
    missed = found["wrong"]
    if found["done"] < found["swaps"]:
        print("the same command goes on with the rest")
    else:
        finished = report(found)
        missed = finished["missed"]
        print(f"restarted beside damaged versions in {found['restart_s']:.1f} s; growth {finished['growth']}")
        save(options.output, finished)
    if missed:
        raise Failure("; ".join(missed))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(ChaosSwap, prog="python -m tests.serving.chaos_swap", description=__doc__)))
