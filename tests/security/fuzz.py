"""Send nearly right requests at the proxy in front of a real server, and look for what must not happen.

    python -m tests.security.fuzz --seconds 120 --seed 1

No crash (the server stays the same process), no hang (every request has an answer, or a closed connection, in time; valid
requests in between are answered rightly), and no name of what is inside in an error that comes out. A finding is written to
a file; the same seed gives the same requests.
"""

from __future__ import annotations

import csv
import socket
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc
import tyro
from tqdm import tqdm

from builders.build import Build, build
from clients import connect
from contract.command import Failure, UsageError, run_command
from contract.files import write_bytes
from tests.fixtures import TINY_RUN, write_base
from tests.security.behind import Proxied, proxying, tritonserver
from tests.security.mutate import Case, case
from tests.security.wire import DEADLINE_S, connected, receive
from tests.served import deployed, serving
from tests.tiny import tiny_texts
from training.finetune import Finetune, finetune
from training.merge import Merge
from training.merge import main as merge

VALID = ["the cat runs", "a rose grows"]
BETWEEN = 50
"""Requests from one valid request to the next."""

INSIDE = (
    "ensemble", "python backend", "python_backend", "stub", "shm", "/dev/", "/opt/", "/usr/", "/home/", "model.py",
    "traceback", "onnx", "openvino", "tensorrt", "libtriton", "bert_tokenizer", "bert_engine", "triton-control", "config.pbtxt",
    "/tmp",  # noqa: S108 - a word to look for
)  # fmt: skip
"""What no error may say, unless the request said it."""


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """Send nearly right requests at the proxy in front of a real server."""

    seconds: float = 120.0
    """How long."""
    seed: int = 1
    """Of the random numbers that make the requests."""
    findings: Path = Path("build/fuzz")
    """Folder for a request that did what it must not."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UsageError(f"--seconds is {self.seconds}; it must be above 0")


def leaks(answer: bytes, sent: bytes, secrets: tuple[str, ...]) -> list[str]:
    """What of the inside `answer` names without having been told."""
    said, told = answer.decode("utf-8", "replace").lower(), sent.decode("utf-8", "replace").lower()
    return [name for name in (*INSIDE, *(secret.lower() for secret in secrets)) if name in said and name not in told]


class Target:
    """The proxy, and what its server answers when nothing is wrong."""

    def __init__(self, proxy: Proxied) -> None:
        self.proxy = proxy
        self.server = tritonserver(proxy.state)
        self.channel = grpc.insecure_channel(proxy.grpc_url)
        self.right = self._valid("http")
        self.secrets = (proxy.state.control_token, f"bert_{proxy.state.pid}_")

    def send(self, what: Case) -> tuple[str, bytes]:
        """(status, error) of one request; "closed" where the connection ends without an answer."""
        if what.protocol == "grpc":
            return self._call(what)
        with connected(self.proxy.http_url if what.protocol == "http" else self.proxy.grpc_url) as connection:
            try:
                connection.sendall(what.data)
                if b"Content-Length: %d\r\n" % len(what.data.partition(b"\r\n\r\n")[2]) not in what.data:
                    connection.shutdown(socket.SHUT_WR)  # or both sides wait for what was announced and never comes
            except (BrokenPipeError, ConnectionResetError, OSError):
                pass  # refused before all of it was sent
            if what.protocol == "raw grpc":
                return "closed", read_to_end(connection)
            reply = receive(connection, method=what.data.partition(b" ")[0].decode("latin-1"))
        return str(reply.status or "closed"), reply.body if reply.status != 200 else b""

    def _call(self, what: Case) -> tuple[str, bytes]:
        method = self.channel.unary_unary(f"/inference.GRPCInferenceService/{what.method}")
        try:
            method(what.data, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TimeoutError(error.details()) from error
            return error.code().name, error.details().encode()
        return "OK", b""

    def check(self) -> None:
        """Raise `Failure` unless the same server answers a valid request rightly over both protocols."""
        if (now := tritonserver(self.proxy.state)) != self.server:
            raise Failure(f"the server crashed: process {self.server} became {now}")
        for protocol in ("http", "grpc"):
            if (answer := self._valid(protocol)) != self.right:
                raise Failure(f"a valid request over {protocol} is answered with {answer}, and not with {self.right}")

    def _valid(self, protocol: str) -> list[dict[str, float]]:
        url = self.proxy.http_url if protocol == "http" else self.proxy.grpc_url
        with connect(url, "http" if protocol == "http" else "grpc", timeout_s=DEADLINE_S) as classifier:
            return [prediction.scores for prediction in classifier.classify(VALID)]


def read_to_end(connection: socket.socket) -> bytes:
    """All bytes until the peer closes."""
    data = b""
    try:
        while piece := connection.recv(65_536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def fuzz(target: Target, options: Fuzz) -> Counter[str]:
    """Send requests until the time is up; how many had which answer.

    Raises:
        Failure: a request ended the server, hung, was told what is inside, or made valid requests fail; it is in a file.
    """
    answers: Counter[str] = Counter()
    recent: list[Case] = []
    ends = time.monotonic() + options.seconds
    with tqdm(desc="fuzz", unit=" requests", mininterval=1) as progress:
        while time.monotonic() < ends:
            number = answers.total()
            what = case(Random(f"{options.seed} {number}"))
            recent = [*recent[-BETWEEN:], what]
            try:
                status, error = target.send(what)
                if found := leaks(error, what.data, target.secrets):
                    raise Failure(f"an error names {', '.join(found)}: {error[:500]!r}")
                if number % BETWEEN == BETWEEN - 1:
                    target.check()
            except (Failure, TimeoutError, OSError) as problem:
                kept = keep(recent, options.findings / f"seed-{options.seed}-request-{number}")
                raise Failure(f"request {number} of seed {options.seed} ({what.kind}): {problem}; see {kept}") from problem
            answers[f"{what.kind}: {status}"] += 1
            progress.update()
    target.check()
    return answers


def keep(recent: list[Case], folder: Path) -> Path:
    """Write the last requests, the newest last, each as it goes over the wire."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, what in enumerate(recent):
        write_bytes(folder / f"{number:03d}-{what.protocol.replace(' ', '-')}-{what.method}.bin", what.data)
    return folder


def tiny_release(folder: Path) -> Path:
    """A release of a tiny model: the requests are what is tried here."""
    (folder / "base").mkdir()
    write_base(folder / "base")
    with (folder / "sentences.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "kind"), *tiny_texts(160)])
    options = TINY_RUN | {"epochs": 1}
    finetune(Finetune(output=folder / "finetuned", data=folder / "sentences.csv", base=str(folder / "base"), **options))
    merge(Merge(checkpoint=folder / "finetuned", output=folder / "merged"))
    build(Build(checkpoint=folder / "merged", output=folder / "release", repository=folder / "built", name="fuzzed"))
    return folder / "release"


def main(options: Fuzz) -> None:
    """Start a server and a proxy, send requests, and print what was answered."""
    with tempfile.TemporaryDirectory(prefix="bert-fuzz-") as folder:
        repository = deployed(Path(folder), tiny_release(Path(folder)))
        with serving(repository) as state, proxying(repository.path, state, "--rate", "100000") as proxy:
            answers = fuzz(Target(proxy), options)
    for answer, count in sorted(answers.items()):
        print(f"{count:8d}  {answer}")
    print(f"{answers.total()} requests: no crash, no hang, no internal name in an error")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Fuzz, prog="python -m tests.security.fuzz", description=__doc__)))
