"""Locust users that classify real texts over gRPC or HTTP.

    locust -f loadtests/locustfile.py GrpcUser --host 127.0.0.1:8001 --texts build/merged/heldout.jsonl \
        --headless --users 8 --spawn-rate 8 --reset-stats --run-time 15s

Without a user class and --host both run, against Triton's own ports on this machine. Closed loop: each user sends its next
text when it has its answer, so the latencies hide queueing; read the throughput. `python -m loadtests.locust_run` runs a
scenario with it, in many processes.
"""

# ruff: noqa: I001 - gRPC must be taught gevent before any channel exists, or every call blocks the whole process
import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from clients import Classifier, ClassifierError, Prediction, connect
from clients.wire import ProtocolName
from contract.command import UsageError
from contract.files import write_json
from loadtests.measure import read_requests
from loadtests.result import CLOSED_NOTE
from loadtests.scenario import read_scenario
from loadtests.texts import group_texts, read_texts

DEFAULT_TEXTS = "build/merged/heldout.jsonl"

_CLOCK = [time.monotonic(), time.process_time()]
_SHARES: dict[str, float] = {}
"""CPU share of each worker process, by Locust's id of it."""


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: LocustArgumentParser) -> None:
    """Add our options to Locust's own."""
    parser.add_argument("--texts", default="", help=f"file of texts; the scenario's, or {DEFAULT_TEXTS}, when left out")
    parser.add_argument("--texts-per-request", type=int, default=1, help="texts that travel in one request")
    parser.add_argument("--scenario", default="", help="scenario file, whose sample of texts is sent")
    parser.add_argument("--summary", default="", help="JSON file to write when the test ends")


@events.init.add_listener  # type: ignore[untyped-decorator]
def load_texts(environment: Environment, **_: Any) -> None:
    """Read the texts once for all users; a bad file or option ends the test before it begins."""
    options = _options(environment)
    try:
        if options.texts_per_request < 1:
            raise UsageError(f"--texts-per-request is {options.texts_per_request}; it must be at least 1")
        if options.scenario:
            texts = Path(options.texts) if options.texts else None
            requests = read_requests(read_scenario(Path(options.scenario), texts=texts))
        else:
            requests = group_texts(read_texts(Path(options.texts or DEFAULT_TEXTS)), 1)
        ClassifierUser.texts = itertools.cycle(text for texts in requests for text in texts)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def start_clock(**_: Any) -> None:
    """Note when the test began, in wall and CPU time."""
    _CLOCK[:] = [time.monotonic(), time.process_time()]


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def report_cpu(client_id: str, data: dict[str, Any]) -> None:
    """A worker tells the master how busy it is."""
    data["cpu_share"] = _cpu_share()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def note_cpu(client_id: str, data: dict[str, Any]) -> None:
    """The master keeps what each worker said last."""
    _SHARES[client_id] = data["cpu_share"]


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def write_summary(environment: Environment, **_: Any) -> None:
    """Write what was measured, for a program to read."""
    options, total = _options(environment), environment.stats.total
    if not options.summary or isinstance(environment.runner, WorkerRunner):
        return
    summary = {
        "note": CLOSED_NOTE,
        "protocol": "+".join(user.protocol for user in (GrpcUser, HttpUser) if user in environment.user_classes),
        "users": options.num_users,
        "requests": total.num_requests,
        "failures": total.num_failures,
        "requests_per_s": total.total_rps,
        "texts_per_s": total.total_rps * options.texts_per_request,
        "p50_ms": total.get_response_time_percentile(0.5),
        "p95_ms": total.get_response_time_percentile(0.95),
        "p99_ms": total.get_response_time_percentile(0.99),
        "generator_cpu_share": max(_SHARES.values()) if _SHARES else _cpu_share(),
        "errors": {f"{error.error}": error.occurrences for error in environment.stats.errors.values()},
    }
    write_json(Path(options.summary), summary)


def _cpu_share() -> float:
    """Of one core, that this process used since the test began."""
    wall, cpu = _CLOCK
    return (time.process_time() - cpu) / max(time.monotonic() - wall, 1e-9)


def _options(environment: Environment) -> Any:
    if environment.parsed_options is None:
        raise RuntimeError("this locustfile is for the locust command, which parses its options")
    return environment.parsed_options


class ClassifierUser(User):
    """Owns the connection, the timing and the reporting; subclasses say over which protocol."""

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[ProtocolName]
    texts: ClassVar[Iterator[str]]
    classifier: Classifier
    features: int = 0
    """Numbers that the release reads beside a text; zeros are sent."""

    def on_start(self) -> None:
        """Open this user's own connection, so that no request is timed with it; without a server the test ends."""
        self.classifier = connect(self.host or "", self.protocol)
        try:
            self.classifier.check_ready()
            self.features = len(self.classifier.feature_names())
        except ClassifierError as error:
            print(f"failed: {type(error).__name__}: {error}", file=sys.stderr)
            self.environment.process_exit_code = 1
            if self.environment.runner is not None:
                gevent.spawn(self.environment.runner.quit)  # not from here: it would wait for this very user

    def on_stop(self) -> None:
        """Close it."""
        self.classifier.close()

    @task
    def classify(self) -> None:
        """Classify the next texts and report how long it took, or how it failed."""
        texts = list(itertools.islice(ClassifierUser.texts, _options(self.environment).texts_per_request))
        beside = [[0.0] * self.features] * len(texts) if self.features else None
        failure: ClassifierError | None = None
        predictions: list[Prediction] = []
        started = time.perf_counter()
        try:
            predictions = self.classifier.classify(texts, features=beside)
        except ClassifierError as error:
            failure = error
        self.environment.events.request.fire(
            request_type=self.protocol,
            name="classify",
            response_time=(time.perf_counter() - started) * 1000,
            response_length=len(predictions),
            exception=failure,
            context={},
        )


class GrpcUser(ClassifierUser):
    """--host is Triton's gRPC port."""

    host = "127.0.0.1:8001"
    protocol = "grpc"


class HttpUser(ClassifierUser):
    """--host is Triton's HTTP port."""

    host = "127.0.0.1:8000"
    protocol = "http"
