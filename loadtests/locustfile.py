"""Locust users that classify real texts over gRPC or HTTP.

    locust -f loadtests/locustfile.py GrpcUser --host 127.0.0.1:8001 --texts build/merged/heldout.jsonl \
        --headless --users 8 --spawn-rate 8 --reset-stats --run-time 15s

Without a user class and --host both run, against Triton's own ports on this machine. Closed loop: each user sends its next
text when it has its answer, so the latencies hide queueing; read the throughput. The figures are those of `--summary`: Locust's
own table counts failures as answers and rounds latencies. `python -m loadtests.locust_run` runs a scenario with it, in many
processes.
"""

# ruff: noqa: I001 - gRPC must be taught gevent before any channel exists, or every call blocks the whole process
import grpc.experimental.gevent

grpc.experimental.gevent.init_gevent()

import dataclasses
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
from locust.runners import MasterRunner, WorkerRunner

from clients import Classifier, ClassifierError, Prediction, connect
from clients.wire import ProtocolName
from contract.command import Failure, UsageError
from contract.files import write_json
from loadtests.closed import REFUSED_PAUSE_S
from loadtests.locust_record import RECORD, order_of_worker
from loadtests.machine import describe_machine
from loadtests.measure import read_requests
from loadtests.scenario import Load, Scenario, read_scenario
from loadtests.texts import group_texts, read_texts

DEFAULT_TEXTS = "build/merged/heldout.jsonl"

_MACHINE: dict[str, Any] = {}
"""As it was before the load began."""


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
            requests = read_requests(_scenario(environment))
        else:
            requests = group_texts(read_texts(Path(options.texts or DEFAULT_TEXTS)), 1)
        ClassifierUser.sample = [text for texts in requests for text in texts]
        ClassifierUser.texts_per_request = _scenario(environment).texts_per_request
        _MACHINE.update(describe_machine())
        if environment.shape_class is None:  # without a scenario's warm-up the window begins when all users are there
            environment.events.spawning_complete.add_listener(lambda **_: RECORD.begin_window())  # type: ignore[no-untyped-call]
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    """Forget an earlier test, and give each worker an order of its own: else all would send the same text at once."""
    RECORD.start()
    index: int = getattr(environment.runner, "worker_index", 0)
    ClassifierUser.texts = itertools.cycle(order_of_worker(ClassifierUser.sample, index))


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def end(**_: Any) -> None:
    """Note when the load ended."""
    RECORD.end = time.time()


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def report_requests(client_id: str, data: dict[str, Any]) -> None:
    """A worker tells the master what it saw."""
    data["record"] = RECORD.take()


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def note_requests(client_id: str, data: dict[str, Any]) -> None:
    """The master keeps what each worker said."""
    RECORD.add(client_id, data["record"])


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def write_summary(environment: Environment, **_: Any) -> None:
    """Write what was measured, for a program to read; a test in which nothing was answered has failed."""
    options = _options(environment)
    if not options.summary or isinstance(environment.runner, WorkerRunner):
        return
    if not isinstance(environment.runner, MasterRunner):
        RECORD.add("local", RECORD.take())
    scenario = _scenario(environment)
    name = Path(options.scenario).stem if options.scenario else "locust"
    try:
        result = RECORD.result(scenario, name=name, machine=_MACHINE)
    except Failure as error:
        print(f"failed: {error}", file=sys.stderr)
        environment.process_exit_code = 1
        return
    summary = {
        "note": result.note,
        "protocol": "+".join(user.protocol for user in (GrpcUser, HttpUser) if user in environment.user_classes),
        "users": scenario.load.users,
        "requests": result.requests,
        "failures": sum(result.errors.values()),
        "requests_per_s": result.requests_per_s.value,
        "texts_per_s": result.texts_per_s,
        **{f"p{percent}_ms": result.quantiles_ms[percent] for percent in ("50", "95", "99")},
        "generator_cpu_share": result.generator_cpu_share,
        "errors": result.errors,
        "result": result.to_json(),
    }
    write_json(Path(options.summary), summary)


def _scenario(environment: Environment) -> Scenario:
    """The one that is followed, or what Locust's own options amount to."""
    options = _options(environment)
    texts = Path(options.texts) if options.texts else None
    if options.scenario:
        scenario = read_scenario(Path(options.scenario), texts=texts)
    else:
        load, grouped = Load(kind="closed", users=1), options.texts_per_request
        scenario = Scenario(texts=texts or Path(DEFAULT_TEXTS), load=load, texts_per_request=grouped, sample=max(2000, grouped))
    if environment.shape_class is not None:
        return scenario
    load = Load(kind="closed", users=options.num_users or 1)
    return dataclasses.replace(scenario, load=load, warmup_s=0, duration_s=max(RECORD.end - RECORD.begin, 1.0))


def _options(environment: Environment) -> Any:
    if environment.parsed_options is None:
        raise RuntimeError("this locustfile is for the locust command, which parses its options")
    return environment.parsed_options


class ClassifierUser(User):
    """Owns the connection, the timing and the reporting; subclasses say over which protocol."""

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[ProtocolName]
    sample: ClassVar[list[str]] = []
    texts: ClassVar[Iterator[str]]
    texts_per_request: ClassVar[int] = 1
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
        texts = list(itertools.islice(ClassifierUser.texts, ClassifierUser.texts_per_request))
        beside = [[0.0] * self.features] * len(texts) if self.features else None
        failure: ClassifierError | None = None
        predictions: list[Prediction] = []
        sent, started = time.time(), time.perf_counter()
        try:
            predictions = self.classifier.classify(texts, features=beside)
        except ClassifierError as error:
            failure = error
        except gevent.GreenletExit:
            RECORD.note_cut(sent, time.perf_counter() - started)
            raise
        took_s = time.perf_counter() - started
        RECORD.note(sent, took_s, release=predictions[0].release if predictions else "", error=failure)
        self.environment.events.request.fire(
            request_type=self.protocol,
            name="classify",
            response_time=took_s * 1000,
            response_length=len(predictions),
            exception=failure,
            context={},
        )
        if failure:
            gevent.sleep(REFUSED_PAUSE_S)


class GrpcUser(ClassifierUser):
    """--host is Triton's gRPC port."""

    host = "127.0.0.1:8001"
    protocol = "grpc"


class HttpUser(ClassifierUser):
    """--host is Triton's HTTP port."""

    host = "127.0.0.1:8000"
    protocol = "http"
