"""Serve a deployed repository with a real tritonserver, on this machine's loopback.

    python -m serving
    python -m serving --repository build/model_repository --grpc-port 0 --http-port 0 --metrics-port 0

Starts the tritonserver on the PATH (NGC container), else the one of the PyPI wheel; prints where it listens once it has
answered a real text; drains and leaves nothing behind on SIGTERM or Ctrl-C. Port 0 takes a free one. A python process that
died or hangs is replaced, a server that ended is started again on the same ports; each event is a line on standard error
and in REPOSITORY.events.jsonl. See docs/operations.md.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from contract.command import Failure, UsageError, run_command, stop_on_signals
from contract.repository import STARTING
from contract.tensors import ENSEMBLES, STEPS, TOKENIZER
from serving.events import EventLog, events_path
from serving.launch import SHM_PREFIX_VARIABLE, find_installation, server_arguments
from serving.process import ServerProcess
from serving.repository import DEFAULT_REPOSITORY, Repository
from serving.state import ServerState, read_state, remove_state
from serving.stubs import read_start
from serving.supervisor import Limits, Supervisor
from serving.tls import GrpcTls
from serving.tracing import Tracing

HEAPS = "MALLOC_ARENA_MAX"
"""Of glibc: heaps of a process, each of which keeps what was freed. Two take 7 MiB less than one for each of its many threads,
at the same speed. Whoever sets it otherwise has it otherwise."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a deployed repository with a real tritonserver."""

    repository: Path = DEFAULT_REPOSITORY
    """Deployed repository with a published release."""
    engine: Literal["cpu", "tensorrt"] = "cpu"
    """cpu: the configs/cpu.pbtxt of bert_engine. tensorrt: its config.pbtxt."""
    address: str = "127.0.0.1"
    """Address to listen on. The embedded server is for loopback only: put a proxy in front of it."""
    grpc_port: int = 8001
    """0 takes a free one."""
    http_port: int = 8000
    """0 takes a free one."""
    metrics_port: int = 8002
    """0 takes a free one."""
    start_timeout_s: float = 120.0
    """How long loading may take."""
    patience_s: float = 60.0
    """How long a step may owe an answer, though it computes, until it counts as hung. Above the longest batch."""
    restarts: int = 8
    """Ends of the server in a row, none after five seconds of service, until it gives up."""
    log: Path | None = None
    """The server's log; REPOSITORY.log when left out."""
    tls: Annotated[GrpcTls, tyro.conf.OmitArgPrefixes] = field(default_factory=GrpcTls)
    tracing: Annotated[Tracing, tyro.conf.OmitArgPrefixes] = field(default_factory=Tracing)

    def __post_init__(self) -> None:
        for name in ("grpc_port", "http_port", "metrics_port"):
            port = getattr(self, name)
            if not 0 <= port <= 65535:
                raise UsageError(f"--{name.replace('_', '-')} is {port}; it must be in 0 to 65535")
        if not self.start_timeout_s > 0:
            raise UsageError(f"--start-timeout-s is {self.start_timeout_s}; it must be above 0")
        if not self.patience_s >= 5:
            raise UsageError(f"--patience-s is {self.patience_s}; it must be at least 5")
        if self.restarts < 0:
            raise UsageError(f"--restarts is {self.restarts}; it must be at least 0")


def claim_ports(address: str, wanted: dict[str, int]) -> dict[str, int]:
    """A port for each name, 0 replaced by a free one; all are held at once, so that no two are the same.

    Raises:
        Failure: a port is in use.
    """
    held: list[socket.socket] = []
    ports: dict[str, int] = {}
    try:
        for name, port in wanted.items():
            holder = socket.socket()
            held.append(holder)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind((address, port))
                holder.listen()  # a bound socket that does not listen would let another one bind as well
            except OSError as error:
                raise Failure(
                    f"--{name}-port {port} on {address}: {error.strerror}; choose another, or 0 for a free one"
                ) from error
            ports[name] = holder.getsockname()[1]
    finally:
        for holder in held:
            holder.close()
    return ports


def check_servable(repository: Repository) -> None:
    """Raise `UsageError` unless a release is published in the repository and nobody serves it."""
    repository.check()
    if repository.pinned() is None:
        raise UsageError(f"no release is published in {repository.path}; python -m serving.releases publish RELEASE does that")
    running = read_state(repository.path)
    # In a container each of us is process 1: the file is then of one that was killed.
    if running is not None and running.pid != os.getpid():
        raise UsageError(f"{repository.path} is served already, by process {running.pid} at {running.grpc_url}")


def serve(options: Serve) -> None:
    """Run the server until it is told to stop; see the module docstring."""
    repository = Repository(options.repository)
    with ExitStack() as starting:  # a publisher that does not see the server yet would change files while it reads them
        repository.check()
        starting.enter_context(repository.locked(STARTING, wait_s=options.start_timeout_s))
        check_servable(repository)
        remove_state(options.repository)  # of one that was killed
        for version in repository.offer_whole():
            print(f"version {version} is damaged on the disk and is not loaded; retire it, or publish its release again")
        _supervise(options, repository, starting.close)


def _supervise(options: Serve, repository: Repository, started: Callable[[], None]) -> None:
    """Start the server and stay with it; `started` is called when it answers first, and has written down where."""
    wanted = {"grpc": options.grpc_port, "http": options.http_port, "metrics": options.metrics_port}
    ports = claim_ports(options.address, wanted)
    state = ServerState(
        pid=os.getpid(),
        pid_started=read_start(os.getpid()) or 0,
        **{f"{name}_url": f"{options.address}:{port}" for name, port in ports.items()},
        control_token=secrets.token_hex(16),
        features=repository.features(),
    )
    stop_on_signals()
    log = options.log or options.repository.with_name(options.repository.name + ".log")
    if log.is_file() and not log.is_symlink():  # as /dev/stdout is
        log.replace(log.with_name(log.name + ".1"))  # it says why the last one ended
    events = EventLog(events_path(log))
    limits = Limits(
        start_timeout_s=options.start_timeout_s,
        patience_s=options.patience_s,
        python_steps=STEPS if options.engine == "cpu" else (TOKENIZER,),
        restarts=options.restarts,
    )
    began = time.perf_counter()

    def announce(release: str) -> None:
        started()
        print(f"{release} answers after {time.perf_counter() - began:.1f} s; log: {log}")
        urls = f"gRPC {state.grpc_url}   HTTP {state.http_url}   metrics {state.metrics_url}/metrics"
        print(f"{urls}   (Ctrl-C stops)", flush=True)

    with tempfile.TemporaryDirectory(prefix="triton-") as workspace:
        start = _starter(options, state, ports, Path(workspace), log)
        try:
            Supervisor(repository, state, start, limits, events).run(announce)
        except KeyboardInterrupt:
            events.write("stopped")
        finally:
            remove_state(options.repository)


def _starter(
    options: Serve, state: ServerState, ports: dict[str, int], workspace: Path, log: Path
) -> Callable[[], ServerProcess]:
    """What starts a server on these ports, again and again."""
    installation = find_installation(workspace)
    shm_prefix = f"bert_{os.getpid()}_"

    def start() -> ServerProcess:
        arguments = server_arguments(
            repository=options.repository.resolve(),
            models=ENSEMBLES,
            config_name="cpu" if options.engine == "cpu" else "",
            address=options.address,
            grpc_port=ports["grpc"],
            http_port=ports["http"],
            metrics_port=ports["metrics"],
            token=state.control_token,
            shm_prefix=shm_prefix,
        )
        arguments += options.tls.arguments() + options.tracing.arguments()
        environment = {SHM_PREFIX_VARIABLE: shm_prefix, HEAPS: os.environ.get(HEAPS, "2")}
        return ServerProcess(installation, arguments, log=log, shm_prefix=shm_prefix, environment=environment)

    return start


if __name__ == "__main__":
    run_command(lambda: serve(tyro.cli(Serve, prog="python -m serving", description=__doc__)))
