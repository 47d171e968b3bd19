"""Live traffic replayed on both releases: a file of requests that grows while it is read.

Triton cannot mirror requests, so they come from where they pass anyway: whatever stands before the server, or its clients, adds
one text a line (or a JSON object with "text" and perhaps "key" and "features") to a file. No caller waits for a shadow or sees
its answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.canary import CanaryClassifier, Outcome, takes_part
from clients.errors import BadRequest, ClassifierError, Rejected
from contract.command import Failure, UsageError
from serving.sequential import CanaryTest, Limits

POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Which requests are replayed, and for how long."""

    requests: Path
    """File of requests, one a line: a text, or {"text": ..., "key": ..., "features": ...}."""
    share: float = 0.1
    """Of the requests; the same key, or the same text where there is none, is always in or out."""
    seconds: float = 30.0
    """How long the file is followed."""
    limits: Limits = field(default_factory=Limits)
    """What the new release may do."""
    accept_undecided: bool = False
    """Promote it also when so few requests came that nothing is known."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"the share of the requests is {self.share}; it must be above 0 and at most 1")
        if not self.seconds > 0:
            raise UsageError(f"--shadow-seconds is {self.seconds}; it must be above 0")


def follow(path: Path, seconds: float) -> Iterator[str]:
    """Whole lines of a file from its beginning, then new ones as they are added, until the time is over.

    Raises `UsageError` when it cannot be read.
    """
    deadline = time.monotonic() + seconds
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            held = ""
            while time.monotonic() < deadline:
                held += file.readline()
                if held.endswith("\n"):
                    yield held.rstrip("\r\n")
                    held = ""
                else:
                    time.sleep(POLL_S)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def parse_request(line: str) -> tuple[str, str, Any]:
    """(text, key, features) of one line; the key of a bare text is the text, and its features are None."""
    if line.startswith("{"):
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):  # a text that only looks like JSON
            row = None
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            return row["text"], str(row.get("key", row["text"])), row.get("features")
    return line, line, None


def replayed(url: str, shadow: Shadow) -> Iterator[Outcome]:
    """Outcomes of the share of the requests, one after the other; what no release can classify is passed over, and what
    a full server refuses: neither says anything about a release.

    Raises:
        Failure: the serving release does not answer.
    """
    with CanaryClassifier(url, "http", share=1.0, shadow=True) as both:
        for line in follow(shadow.requests, shadow.seconds):
            text, key, features = parse_request(line)
            if not takes_part(key, shadow.share):
                continue
            try:
                outcome = both.compare([text], features=None if features is None else [features])[2]
            except (BadRequest, Rejected):
                continue
            except ClassifierError as error:
                raise Failure(f"the serving release does not answer: {error}") from error
            if outcome is not None:
                yield outcome


def check_shadow(url: str, shadow: Shadow) -> dict[str, object]:
    """Replay and judge: the evidence, whose verdict is good, or open when too few requests came.

    Raises `Failure` when the new release is found bad, or when there was no traffic.
    """
    test = CanaryTest(shadow.limits)
    for outcome in replayed(url, shadow):
        if test.add(outcome) != "open":
            break
    evidence = test.evidence()
    if not test.errors.seen:
        raise Failure(f"no request came to shadow: {shadow.requests} held none of the share within {shadow.seconds:g} s")
    if test.verdict == "bad":
        raise Failure(f"in the shadow of live traffic the new release is bad: {json.dumps(evidence)}")
    return evidence
