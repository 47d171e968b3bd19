"""Run a closed-loop scenario with Locust, in as many processes as it takes to load the server: one command.

    python -m loadtests.locust_run loadtests/scenarios/spike.toml --workers 2 --url 127.0.0.1:8001
    python -m loadtests.locust_run loadtests/scenarios/soak.toml --protocol http --url 127.0.0.1:8000

Starts Locust's master and workers on this machine, without its web page, and ends with them. Exit code 1 when a worker was
busier than a generator may be, and when the scenario's criteria are not met. Latencies
of a closed loop hide queueing; those of `loadtests.run` with an open load do not.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from clients.wire import ProtocolName
from contract.command import Failure, UsageError, run_command
from contract.files import read_json, write_json
from loadtests.measure import read_requests
from loadtests.result import MAX_CPU_SHARE
from loadtests.scenario import Criteria, Scenario, read_scenario

FILES = ",".join(str(Path(__file__).parent / name) for name in ("locustfile.py", "shapefile.py"))
USERS = {"grpc": "GrpcUser", "http": "HttpUser"}
START_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class LocustRun:
    """Run a closed-loop scenario with Locust's master and workers."""

    scenario: Annotated[Path, tyro.conf.Positional]
    """Scenario file (loadtests/scenarios/*.toml) with a closed load, of any shape."""
    url: str = "127.0.0.1:8001"
    """host:port of the server, for the protocol chosen."""
    protocol: ProtocolName = "grpc"
    """grpc (Triton's port 8001) or http (8000)."""
    workers: int = 1
    """Processes that send, beside the master; the users are spread over them."""
    texts: Path | None = None
    """Take these texts and not the scenario's."""
    output: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers is {self.workers}; it must be at least 1")


def commands(options: LocustRun, scenario: Scenario, *, port: int, summary: Path) -> tuple[list[str], list[str]]:
    """(the master's command line, a worker's)."""
    shared = [sys.executable, "-m", "locust", "-f", FILES, USERS[options.protocol], "--host", options.url]
    shared += ["--scenario", str(options.scenario), "--texts", str(scenario.texts)]
    shared += ["--texts-per-request", str(scenario.texts_per_request), "--skip-log-setup"]
    master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--headless", "--only-summary"]
    master += ["--expect-workers", str(options.workers), "--expect-workers-max-wait", str(START_TIMEOUT_S)]
    master += ["--exit-code-on-error", "0", "--summary", str(summary)]
    return [*shared, *master], [*shared, "--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]


def unmet(summary: dict[str, Any], criteria: Criteria) -> list[str]:
    """What makes a run fail, with the figures."""
    found = []
    error_rate = summary["failures"] / summary["requests"]
    if summary["generator_cpu_share"] > MAX_CPU_SHARE:
        share = f"{summary['generator_cpu_share']:.0%}"
        found.append(f"the busiest worker used {share} of a core, allowed {MAX_CPU_SHARE:.0%}: give it more --workers")
    if error_rate > criteria.error_rate:
        kinds = "; ".join(f"{count} x {kind}" for kind, count in summary["errors"].items())
        found.append(f"error rate {error_rate:.3%} ({kinds}), allowed {criteria.error_rate:.3%}")
    if criteria.p99_ms is not None and not summary["p99_ms"] <= criteria.p99_ms:
        found.append(f"p99 {summary['p99_ms']:g} ms, allowed {criteria.p99_ms:g}")
    if criteria.requests_per_s is not None and not summary["requests_per_s"] >= criteria.requests_per_s:
        found.append(f"{summary['requests_per_s']:.4g} requests/s, wanted {criteria.requests_per_s:g}")
    return found


def main(options: LocustRun) -> None:
    """Run the command; see the module docstring."""
    scenario = read_scenario(options.scenario, texts=options.texts)
    if scenario.load.kind != "closed":
        raise UsageError(f"{options.scenario} is an open load, and Locust's users wait for answers: python -m loadtests.run")
    read_requests(scenario)  # a file that cannot be used is told here, and not by every worker
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port: int = holder.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="locust-") as folder:
        summary_file = Path(folder) / "summary.json"
        _run(*commands(options, scenario, port=port, summary=summary_file), workers=options.workers)
        summary: dict[str, Any] = read_json(summary_file)
    if not summary["requests"]:
        raise Failure("no request was answered or failed within the measured time")
    summary |= {"users": scenario.load.users, "workers": options.workers, "scenario": scenario.to_json()}
    summary["unmet"] = unmet(summary, scenario.criteria)
    if options.output:
        write_json(options.output, summary)
    print(
        f"{options.protocol}: {summary['requests_per_s']:.4g} requests/s, p50 {summary['p50_ms']:g} ms, "
        f"p99 {summary['p99_ms']:g} ms, {summary['failures']} of {summary['requests']} failed; "
        f"busiest worker {summary['generator_cpu_share']:.0%} of a core\n{summary['note']}"
    )
    if summary["unmet"]:
        raise Failure("the scenario is not passed:\n  " + "\n  ".join(summary["unmet"]))


def _run(master: Sequence[str], worker: Sequence[str], *, workers: int) -> None:
    """Run master and workers until the master ends. Raises `Failure` when one of them ends badly; none is left behind."""
    processes = [subprocess.Popen(worker) for _ in range(workers)]
    try:
        code = subprocess.run(master, check=False).returncode
        codes = [code, *(process.wait(START_TIMEOUT_S) for process in processes)] if code == 0 else [code]
        if any(codes):
            raise Failure(f"locust ended with {', '.join(map(str, codes))} (master, then workers); its reason is above")
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(LocustRun, prog="python -m loadtests.locust_run", description=__doc__)))
