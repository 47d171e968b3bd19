"""Classify texts from the command line; one JSON object a line.

    python -m clients.classify "How do I sort a list?" --url 127.0.0.1:8001
    python -m clients.classify --protocol http --url 127.0.0.1:8000 < texts.txt

Without texts, each line of standard input is one.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from clients.classifier import DEFAULT_TIMEOUT_S, connect
from clients.errors import BadRequest, ClassifierError
from clients.transport import ProtocolName
from contract.command import Failure, UsageError, run_command


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Classify texts with a running server."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts to classify; standard input, a line each, when left out."""
    url: str = "127.0.0.1:8001"
    """host:port of the server, for the protocol chosen."""
    protocol: ProtocolName = "grpc"
    """grpc (Triton's port 8001) or http (8000)."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Deadline of one request, in seconds."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UsageError(f"--timeout-s is {self.timeout_s}; it must be above 0")


def classify(options: Classify) -> None:
    """Run the command; see the module docstring."""
    try:
        texts = list(options.texts) or [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: {error}") from error
    if not texts:
        raise UsageError("no texts: give some as arguments, or one a line on standard input")
    try:
        with connect(options.url, options.protocol, timeout_s=options.timeout_s) as classifier:
            for prediction in classifier.classify(texts):
                print(json.dumps(dataclasses.asdict(prediction), ensure_ascii=False))
    except BadRequest as error:
        raise UsageError(str(error)) from error
    except ClassifierError as error:
        raise Failure(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    run_command(lambda: classify(tyro.cli(Classify, prog="python -m clients.classify", description=__doc__)))
