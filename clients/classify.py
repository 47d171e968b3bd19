"""Classify texts from the command line, one answer a line.

    python -m clients.classify "How do I sort a list?" --url 127.0.0.1:8001
    python -m clients.classify "How do I sort a list?" --url 127.0.0.1:8001 --table
    python -m clients.classify --protocol http --url 127.0.0.1:8000 < texts.txt
    tail -f service.log | python -m clients.classify
    python -m clients.classify "a text" --features account_age_days=12 tags=3
    python -m clients.classify "a text" --url models.example.org:443 --tls --tls-ca ca.pem

Without texts, each line of standard input is one, answered as it comes. Files with columns, or with lines that may be bad, are
for `python -m clients.score`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Annotated

import tyro

from clients.classifier import DEFAULT_TIMEOUT_S, connect
from clients.errors import BadRequest, ClassifierError, describe
from clients.payload import Features, encode_text
from clients.prediction import Prediction
from clients.retry import RetryPolicy
from clients.tls import tls_from_flags
from clients.transport import ProtocolName
from contract.command import Failure, UsageError, run_command
from contract.tensors import CLASSIFIER, MAX_BATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Classify texts with a running server."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts to classify; standard input, a line each, when left out."""
    features: tuple[str, ...] = ()
    """Numbers beside every text, where the release reads some: NAME=VALUE each, or all values in its order."""
    url: str = "127.0.0.1:8001"
    """host:port of the server, for the protocol chosen."""
    protocol: ProtocolName = "grpc"
    """grpc (Triton's port 8001) or http (8000)."""
    model: str = CLASSIFIER
    """Which of the server's classifiers is asked."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Deadline of one request with its retries, in seconds."""
    retries: int = 0
    """How often a request is sent again while the server is away; the waits between grow to 2 s."""
    request_id: str = ""
    """Id of the requests in the server's log; a random one when left out."""
    table: bool = False
    """Print a table for people; otherwise one JSON object a line."""
    tls: bool = False
    """Encrypt the connection."""
    tls_ca: Path | None = None
    """PEM file of the authority that signed the server's certificate; those of the system when left out."""
    tls_certificate: Path | None = None
    """PEM file of a certificate for this client, where the server asks for one."""
    tls_key: Path | None = None
    """PEM file of that certificate's key."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UsageError(f"--timeout-s is {self.timeout_s}; it must be above 0")
        if self.retries < 0:
            raise UsageError(f"--retries is {self.retries}; at least 0 is needed")
        self.numbers()

    def numbers(self) -> Features | None:
        """`features` as `Classifier.classify` takes them; None where there are none. Raises `UsageError` for others."""
        pairs = [part.rpartition("=") for part in self.features]
        named = [name for name, _, _ in pairs if name]
        try:
            values = [float(value) for _, _, value in pairs]
        except ValueError as error:
            raise UsageError(f"--features: {error}; give numbers, NAME=VALUE each or none with a name") from error
        if named and (len(named) < len(pairs) or len(set(named)) < len(named)):
            raise UsageError(f"--features is {' '.join(self.features)}; give each name once, or values alone")
        return (dict(zip(named, values, strict=True)) if named else values) or None


def classify(options: Classify) -> None:
    """Run the command; see the module docstring."""
    tls = tls_from_flags(options.tls, options.tls_ca, options.tls_certificate, options.tls_key)
    retry = RetryPolicy(attempts=options.retries + 1)
    batches: Iterable[list[str]] = [list(options.texts)] if options.texts else lines_of_stdin()
    answered = 0
    try:
        with connect(
            options.url, options.protocol, model=options.model, timeout_s=options.timeout_s, retry=retry, tls=tls
        ) as classifier:
            for texts in batches:
                beside = None if (numbers := options.numbers()) is None else [numbers] * len(texts)
                for prediction in classifier.classify(texts, features=beside, request_id=options.request_id):
                    print(_row(prediction) if options.table else _json(prediction))
                    answered += 1
                sys.stdout.flush()  # whoever waits at the other end of a pipe sees it now
    except BadRequest as error:
        raise UsageError(str(error)) from error
    except ClassifierError as error:
        raise Failure(describe(error)) from error
    if not answered:
        raise UsageError("no texts: give some as arguments, or one a line on standard input")


def lines_of_stdin() -> Iterator[list[str]]:
    """Up to `MAX_BATCH_SIZE` lines at a time: all that are there, and never waiting for more once one has come.

    Raises UsageError for a line that is not UTF-8 or that no server would take, after the lines before it.
    """
    lines: Queue[str | Exception | None] = Queue(maxsize=4 * MAX_BATCH_SIZE)
    Thread(target=_read, args=(lines,), daemon=True).start()  # a terminal or a pipe may be silent for long
    last: str | Exception | None = ""
    while isinstance(last, str):
        ready = [lines.get()]
        with suppress(Empty):
            while len(ready) < MAX_BATCH_SIZE and isinstance(ready[-1], str):
                ready.append(lines.get_nowait())
        texts, last = [line for line in ready if isinstance(line, str)], ready[-1]
        if texts:
            yield texts
    if last is not None:
        raise last


def _read(lines: Queue[str | Exception | None]) -> None:
    """Put every line of standard input, then None; or, at the first bad one, why it is bad."""
    try:
        # Not sys.stdin: Python aborts when it ends while another thread waits for input with that object's lock.
        with open(0, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                lines.put(_text(line, number))
        lines.put(None)
    except UsageError as error:
        lines.put(error)
    except OSError as error:
        lines.put(Failure(f"cannot read standard input: {error}"))


def _text(line: bytes, number: int) -> str:
    try:
        text = line.decode().rstrip("\r\n")
        encode_text(text, f"line {number}")
    except UnicodeDecodeError as error:
        raise UsageError(f"line {number} of standard input is not UTF-8: {error}") from error
    except BadRequest as error:
        raise UsageError(str(error)) from error
    return text


def _json(prediction: Prediction) -> str:
    return json.dumps(dataclasses.asdict(prediction), ensure_ascii=False)


def _row(prediction: Prediction) -> str:
    text = " ".join(prediction.text.split())
    shown = text if len(text) <= 80 else text[:79] + "…"
    return f"{prediction.label:<20} {prediction.score:6.1%} {'cut' if prediction.truncated else '   '}  {shown}"


if __name__ == "__main__":
    run_command(lambda: classify(tyro.cli(Classify, prog="python -m clients.classify", description=__doc__)))
