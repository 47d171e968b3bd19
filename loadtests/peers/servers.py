"""A running server, ours or a peer's, as the measurements see it: a target, labels, memory, and the time until it answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from clients import ClassifierError, connect
from contract.command import Failure
from loadtests.operator import STATE_FILE, Operator, read_operator
from loadtests.peers.catalogue import Launch, Peer
from loadtests.peers.http import HttpTarget, NoLabelError
from loadtests.peers.measure import Open
from loadtests.peers.process import ROOT, ServerProcess, running
from loadtests.record import Requests
from loadtests.target import GrpcTarget

START_TIMEOUT_S = 300.0
IN_FLIGHT = 8
"""Requests in flight while labels are compared, which also warms the server up."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers."""

    target: Open
    labels: Callable[[Sequence[str]], list[str]]
    """The label of each text; raises `Failure` when the server does not answer."""
    process: ServerProcess
    cold_start_s: float
    """From its start to its first answer."""
    operator: Operator | None = None


@contextlib.contextmanager
def serve_peer(peer: Peer, launch: Launch, requests: Requests, *, timeout_s: float) -> Iterator[Server]:
    """The peer for as long as the block lasts. Raises `Failure` with its last lines when it does not come to answer."""
    url = f"http://127.0.0.1:{launch.port}{peer.path}"

    def target(requests: Requests = requests) -> HttpTarget:
        return HttpTarget(url, requests, body=peer.body, label=peer.label, timeout_s=timeout_s)

    def answers() -> bool:
        try:
            asyncio.run(_labels(target(requests[:1]), requests[0], 1))
        except NoLabelError:
            return False
        return True

    def labels(texts: Sequence[str]) -> list[str]:
        try:
            return asyncio.run(_labels(target([(text,) for text in texts]), texts, IN_FLIGHT))
        except NoLabelError as error:
            raise Failure(f"{peer.name} does not classify: {error}") from error

    environment = _environment(launch.python) | peer.variables(launch)
    with running(peer.command(launch), environment, launch.work / "server.log", peer.folder(launch)) as process:
        cold_start_s = process.wait_until(answers, timeout_s=START_TIMEOUT_S)
        yield Server(target=target, labels=labels, process=process, cold_start_s=cold_start_s)


@contextlib.contextmanager
def serve_ours(repository: Path, requests: Requests, *, timeout_s: float) -> Iterator[Server]:
    """`python -m serving` over a deployed repository for as long as the block lasts. Raises as `serve_peer` does."""
    ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "serving", "--repository", str(repository), *ports]
    state = repository / STATE_FILE
    state.unlink(missing_ok=True)
    with running(command, dict(os.environ), repository.with_name("serving.log")) as process:
        cold_start_s = process.wait_until(state.exists, timeout_s=START_TIMEOUT_S)  # written once a text was answered
        operator = read_operator(repository)

        def labels(texts: Sequence[str]) -> list[str]:
            try:
                with connect(operator.grpc_url) as classifier:
                    return [prediction.label for prediction in classifier.classify(texts)]
            except ClassifierError as error:
                raise Failure(f"our server does not classify: {type(error).__name__}: {error}") from error

        yield Server(
            target=lambda: GrpcTarget(operator.grpc_url, requests, timeout_s=timeout_s),
            labels=labels,
            process=process,
            cold_start_s=cold_start_s,
            operator=operator,
        )


def _environment(python: Path) -> dict[str, str]:
    """What of ours a peer's processes see: the PATH, its own environment first, and where the programs lie."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "VIRTUAL_ENV": str(python.parents[1])}


async def _labels(target: HttpTarget, texts: Sequence[str], in_flight: int) -> list[str]:
    gate = asyncio.Semaphore(in_flight)

    async def ask(text: str) -> str:
        async with gate:
            return await target.label_of(text)

    async with target:
        return list(await asyncio.gather(*map(ask, texts)))


def cut_texts(texts: Sequence[str], tokenizer_json: Path) -> list[str]:
    """Each text up to the last character that the model reads of it, for a server that does not cut by itself."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    found = []
    for text, encoding in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
        ends = [end for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True) if not special]
        found.append(text[: max(ends)] if encoding.overflowing and ends else text)
    return found
