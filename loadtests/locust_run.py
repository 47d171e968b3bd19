"""Run a closed-loop scenario with Locust, in as many processes as it takes to load the server: one command.

    python -m loadtests.locust_run loadtests/scenarios/spike.toml --workers 2 --url 127.0.0.1:8001
    python -m loadtests.locust_run loadtests/scenarios/soak.toml --protocol http --url 127.0.0.1:8000

Starts Locust's master and workers, without its web page, and ends with them. Workers of other machines join with the command
that --remote-workers prints. Exit code 1 when the measurement is no good (a worker was busier than a generator may be, a
constant load was not steady, too few requests) and when the scenario's criteria are not met. Latencies of a closed loop hide
queueing; those of `loadtests.run` with an open load do not.
"""

from __future__ import annotations

import shlex
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
from loadtests.result import Result
from loadtests.run import describe
from loadtests.scenario import Scenario, read_scenario

FILES = ",".join(str(Path(__file__).parent / name) for name in ("locustfile.py", "shapefile.py"))
USERS = {"grpc": "GrpcUser", "http": "HttpUser"}
START_TIMEOUT_S = 120
REMOTE_TIMEOUT_S = 600
"""Until somebody has started those."""
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}


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
    """Processes on this machine that send, beside the master; the users are spread over all workers."""
    remote_workers: int = 0
    """Processes of other machines that join; the command to run there is printed, and --bind must be reachable from there."""
    bind: str = "127.0.0.1:0"
    """host:port at which the master awaits its workers, 0.0.0.0 for every network, port 0 for a free one. Nothing guards it."""
    texts: Path | None = None
    """Take these texts and not the scenario's."""
    output: Path | None = None
    """JSON file to write."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers is {self.workers}; it must be at least 1")
        if self.remote_workers < 0:
            raise UsageError(f"--remote-workers is {self.remote_workers}; it must be at least 0")
        host, _, port = self.bind.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"--bind is {self.bind!r}; it must be host:port, e.g. 0.0.0.0:5557")
        if self.remote_workers and host in LOOPBACK:
            raise UsageError(f"--bind is {self.bind}, which no other machine reaches; --remote-workers needs e.g. 0.0.0.0:5557")


def commands(
    options: LocustRun, scenario: Scenario, *, host: str, port: int, summary: Path
) -> tuple[list[str], list[str], list[str]]:
    """(the master's command line, that of a worker here, that of a worker elsewhere, in a copy of this project)."""
    shared = [USERS[options.protocol], "--host", options.url, "--scenario", str(options.scenario)]
    shared += ["--texts", str(scenario.texts), "--texts-per-request", str(scenario.texts_per_request), "--skip-log-setup"]
    here = [sys.executable, "-m", "locust", "-f", FILES, *shared]
    master = ["--master", "--master-bind-host", host, "--master-bind-port", str(port), "--headless", "--only-summary"]
    master += ["--expect-workers", str(options.workers + options.remote_workers)]
    master += ["--expect-workers-max-wait", str(REMOTE_TIMEOUT_S if options.remote_workers else START_TIMEOUT_S)]
    master += ["--exit-code-on-error", "0", "--summary", str(summary)]
    near, far = ("127.0.0.1", socket.gethostname()) if host == "0.0.0.0" else (host, host)  # noqa: S104 - what the user chose
    files = ",".join(f"loadtests/{Path(name).name}" for name in FILES.split(","))
    worker = ["--worker", "--master-port", str(port), "--master-host"]
    elsewhere = ["python", "-m", "locust", "-f", files, *shared, *worker, far]
    return [*here, *master], [*here, *worker, near], elsewhere


def main(options: LocustRun) -> None:
    """Run the command; see the module docstring."""
    scenario = read_scenario(options.scenario, texts=options.texts)
    if scenario.load.kind != "closed":
        raise UsageError(f"{options.scenario} is an open load, and Locust's users wait for answers: python -m loadtests.run")
    read_requests(scenario)  # a file that cannot be used is told here, and not by every worker
    host, _, wanted = options.bind.rpartition(":")
    port = int(wanted) or _free_port(host)
    with tempfile.TemporaryDirectory(prefix="locust-") as folder:
        summary_file = Path(folder) / "summary.json"
        master, worker, elsewhere = commands(options, scenario, host=host, port=port, summary=summary_file)
        if options.remote_workers:
            print(f"run {options.remote_workers} times on other machines:\n  {shlex.join(elsewhere)}", flush=True)
        _run(master, worker, workers=options.workers)
        summary: dict[str, Any] = read_json(summary_file)
    result = Result.from_json(summary["result"])
    unmet = result.unmet(scenario.criteria)
    if options.output:
        processes = {"workers": options.workers + options.remote_workers, "protocol": options.protocol}
        write_json(options.output, result.to_json() | processes | {"unmet": unmet})
    print(describe(result))
    if result.refusals:
        raise Failure("this measurement says nothing about the server:\n  " + "\n  ".join(result.refusals))
    if unmet:
        raise Failure("the criteria are not met:\n  " + "\n  ".join(unmet))


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as holder:
        port: int = holder.getsockname()[1]
        return port


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
