"""The rounds of a comparison: environments, exported models, one server after the other, and what is kept of each."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from clients.errors import ClassifierError
from contract.command import Failure, UsageError
from contract.files import read_json_lines, sha256_of, write_json, write_json_lines
from contract.release import read_manifest
from contract.tensors import ENGINE, TOKENIZER
from loadtests.alone import measure_alone
from loadtests.deployment import publish_alone, template_hashes
from loadtests.machine import describe_machine
from loadtests.peers.bare import bare_engine
from loadtests.peers.book import Book
from loadtests.peers.catalogue import Launch, Peer, processor_flags
from loadtests.peers.duel import Pair, busiest, rotated, take_pairs
from loadtests.peers.environments import REQUIREMENTS, interpreter, versions
from loadtests.peers.export import export_onnx
from loadtests.peers.goals import OURS, TIMEOUT_S, rivals
from loadtests.peers.measure import USERS, Plan, measure, measure_round, settle
from loadtests.peers.process import free_port
from loadtests.peers.servers import Server, cut_texts, serve_ours, serve_peer
from loadtests.scenario import Load
from loadtests.target import waiting, waiting_http
from loadtests.texts import read_texts

SAMPLE = 2000
TURNS = 5
"""Of requests one by one over gRPC, and over HTTP."""
AT_PEERS = "0.8"
"""The peers' open loop whose rate ours is met with as well."""


@dataclass(frozen=True)
class _Side:
    """One of two that are loaded in turn."""

    server: Server
    plan: Plan
    users: int
    """In flight where it answers most."""

    def under(self, users: int, turn: int) -> dict[str, Any]:
        """A closed loop on it, once it is idle; each turn begins at other texts, so that the spread is theirs too."""
        settle(self.server.process.cpu_s)
        plan = replace(self.plan, requests=rotated(self.plan.requests, turn))
        return measure("duel", self.server.target, plan, Load(kind="closed", users=users))


@dataclass(kw_only=True)
class Session:
    """One call of the command."""

    checkpoint: Path
    release: Path
    template: Path
    envs: Path
    work: Path
    texts: Path
    seconds: float
    warmup_s: float
    compared: int
    agreement: float
    seed: int
    output: Path
    peers: Sequence[Peer]
    """All that there are, also those that are not measured now: ours meets the rivals among the measured ones."""
    fresh: bool = False
    failed: dict[str, str] = field(default_factory=dict)
    """Why a server could not be measured."""

    def __post_init__(self) -> None:
        """Check the input; write down the checkpoint's own labels. Raises UsageError for a release of another checkpoint."""
        self.manifest = read_manifest(self.release)
        weights = self.checkpoint / "model.safetensors"
        if not weights.exists() or sha256_of(weights) != self.manifest.checkpoint_sha256:
            raise UsageError(f"{self.release} was not built of {self.checkpoint}: the hashes of the weights differ")
        self.work.mkdir(parents=True, exist_ok=True)
        self._sample = read_texts(self.texts, limit=SAMPLE, seed=self.seed)
        self._cores = int(describe_machine()["cores"])
        facts = {"machine": describe_machine(), "engine": self.manifest.engine}
        self.book = Book(self.output, self._identity(), facts, fresh=self.fresh)

    def _identity(self) -> dict[str, Any]:
        machine = describe_machine()
        return {
            "release": self.manifest.release,
            "checkpoint_sha256": self.manifest.checkpoint_sha256,
            "machine": {name: machine[name] for name in ("cpu", "cores")},
            "texts": {"file": self.texts.name, "sha256": sha256_of(self.texts), "sampled": len(self._sample)},
            "options": {name: getattr(self, name) for name in ("seconds", "warmup_s", "compared", "agreement", "seed")},
            "repository": template_hashes(self.template) if self.template.is_dir() else {},
            "requirements": {path.stem: sha256_of(path) for path in sorted(REQUIREMENTS.glob("*.txt"))},
        }

    def measure_round(self, number: int, peers: list[Peer], *, ours: bool) -> None:
        """Measure what is not finished of a round; every second round goes through the peers backwards."""
        for peer in peers if number % 2 else reversed(peers):
            if peer.name in self.book.finished(number):
                continue
            with self._attempt(peer.name):
                print(f"round {number}: {peer.name}", file=sys.stderr, flush=True)
                self.book.keep(number, peer.name, self._measure_peer(peer))
        done = self.book.finished(number)
        rates = {name: found["open"][AT_PEERS]["rate"] for name, found in done.items() if name != OURS}
        against = rivals(done, self.book.best)
        before = done.get(OURS)
        if ours and (before is None or set(before["at"]) != set(rates) or not set(against) <= set(before["duels"])):
            with self._attempt(OURS):
                print(f"round {number}: {OURS}", file=sys.stderr, flush=True)
                self.book.keep(number, OURS, self._measure_ours(rates, done, against))

    @contextlib.contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        """What fails in the block is written down, and the others are measured."""
        try:
            yield
        except (Failure, ClassifierError) as error:
            self.failed[name] = f"{type(error).__name__}: {error}" if isinstance(error, ClassifierError) else str(error)
            self.book.fail(name, self.failed[name])
        else:
            self.book.forget_failure(name)

    def _measure_peer(self, peer: Peer) -> dict[str, Any]:
        with self._served(peer) as (server, plan):
            return (
                self._facts(server, cut=peer.onnx)
                | measure_round(peer.name, server.target, plan, cpu_s=server.process.cpu_s)
                | _weigh(server)
            )

    @contextlib.contextmanager
    def _served(self, peer: Peer) -> Iterator[tuple[Server, Plan]]:
        """A peer that runs, and how it is measured."""
        work = self.work / peer.name
        work.mkdir(exist_ok=True)
        python = interpreter(peer.environment, self.envs)
        onnx = self.work / "onnx"
        if peer.onnx:
            export_onnx(self.checkpoint, onnx, python, processor_flags())
        launch = Launch(model=self.checkpoint, onnx=onnx, python=python, work=work, port=free_port(), threads=self._cores)
        self.book.describe(
            peer.name,
            {"title": peer.title, "settings": peer.settings, "best": peer.best, "protocol": "HTTP"}
            | {"versions": versions(python, peer.versions)},
        )
        plan = self._plan(cut=peer.onnx)
        with serve_peer(peer, launch, plan.requests, timeout_s=TIMEOUT_S) as server:
            yield server, plan

    def _measure_ours(self, rates: dict[str, float], done: dict[str, Any], against: Sequence[str]) -> dict[str, Any]:
        repository = self.work / OURS / "model_repository"
        repository.parent.mkdir(exist_ok=True)
        publish_alone(self.release, self.template, repository)
        settings = f"{self.manifest.engine}, as published"
        facts = {"title": "BERT on Triton", "settings": settings, "best": True, "protocol": "gRPC"}
        self.book.describe(OURS, facts | {"versions": self.manifest.versions})
        plan = self._plan()
        with serve_ours(repository, plan.requests, timeout_s=TIMEOUT_S) as server:
            agreed = self._facts(server)
            assert server.operator is not None  # noqa: S101 - ours has one
            measured = measure_round(
                OURS, server.target, plan, cpu_s=server.process.cpu_s, operator=server.operator, other_rates=rates
            )
            measured |= _alone(server, plan) | _weigh(server)
            mine = _Side(server, plan, busiest(measured["closed"]))
            bare = self._beside_bare(mine, repository)
            duels = {}
            for peer in self.peers:
                if peer.name in against:
                    with self._attempt(peer.name):  # without its duel, ours is measured again by the next call
                        duels[peer.name] = self._duel(mine, peer, busiest(done[peer.name]["closed"]))
        return agreed | measured | {"bare": bare, "cores": self._cores, "duels": duels}

    def _duel(self, mine: _Side, peer: Peer, users: int) -> dict[str, list[Pair]]:
        """Pairs of loads in turn, on both while the other is idle: each at its own best, and one request in flight."""
        with self._served(peer) as (server, plan):
            self._facts(server, cut=peer.onnx)  # which warms it up
            rival = _Side(server, plan, users)
            titles = {"saturated": f"{OURS} and {peer.name}, saturated", "alone": f"{OURS} and {peer.name}, one in flight"}
            loads = {"saturated": (mine.users, rival.users), "alone": (1, 1)}
            return {
                name: take_pairs(titles[name], partial(mine.under, ours), partial(rival.under, theirs))
                for name, (ours, theirs) in loads.items()
            }

    def _beside_bare(self, mine: _Side, repository: Path) -> list[Pair]:
        """Pairs of ours, served, and of its engine without a server, whose batches are as large as the most in flight."""
        folder = repository / ENGINE
        version = max(path.name for path in folder.iterdir() if path.name.isdecimal())
        assert mine.server.operator is not None  # noqa: S101 - ours has one
        config = mine.server.operator.config(ENGINE)
        if (count := sum(group["count"] for group in config["instance_group"])) != 1:
            print(f"the bare engine is one instance, and {count} are served: it is not measured", file=sys.stderr, flush=True)
            return []
        write_json(self.work / "engine_config.json", config)
        files = (folder, version, self.work / "engine_config.json", self.release / TOKENIZER / "tokenizer.json", self.texts)
        with bare_engine(*map(str, (*files, self.seed, max(USERS)))) as texts_per_s:
            return take_pairs(
                f"{OURS} and its bare engine",
                partial(mine.under, mine.users),
                lambda turn: {"requests_per_s": texts_per_s(self.seconds, turn)},
            )

    def _plan(self, *, cut: bool = False) -> Plan:
        return Plan(
            texts=self.texts,
            requests=[(text,) for text in (self._cut(self._sample) if cut else self._sample)],
            seconds=self.seconds,
            warmup_s=self.warmup_s,
            timeout_s=TIMEOUT_S,
            seed=self.seed,
        )

    def _cut(self, texts: list[str]) -> list[str]:
        return cut_texts(texts, self.release / TOKENIZER / "tokenizer.json")

    def _facts(self, server: Server, *, cut: bool = False) -> dict[str, Any]:
        """Cold start, and labels compared. Raises `Failure` where too few are the checkpoint's."""
        texts, expected = self._expected
        given = server.labels(self._cut(texts) if cut else texts)
        equal = sum(label == wanted for label, wanted in zip(given, expected, strict=True))
        if equal < self.agreement * len(texts):
            raise Failure(f"{equal} of {len(texts)} labels are the checkpoint's, wanted {self.agreement:.1%}")
        return {"cold_start_s": server.cold_start_s, "labels": {"texts": len(texts), "equal": equal}}

    @cached_property
    def _expected(self) -> tuple[list[str], list[str]]:
        """(texts, the checkpoint's own labels)."""
        source, answers = self.work / "compared.jsonl", self.work / "predictions.jsonl"
        write_json_lines(source, [{"text": text} for text in self._sample[: self.compared]])
        _run("training.predict", str(self.checkpoint), "--texts", str(source), "--output", str(answers))
        rows = list(read_json_lines(answers))
        return [row["text"] for row in rows], [row["label"] for row in rows]


def _alone(server: Server, plan: Plan) -> dict[str, Any]:
    """Requests one by one, beside what Triton counts of each, over both protocols in turn."""
    operator = server.operator
    assert operator is not None  # noqa: S101 - ours has one
    settle(server.process.cpu_s)
    with (
        waiting(operator.grpc_url, plan.requests, timeout_s=TIMEOUT_S) as grpc,
        waiting_http(operator.http_url, plan.requests, timeout_s=TIMEOUT_S) as http,
    ):
        turns = [
            (measure_alone(grpc, plan.requests, operator), measure_alone(http, plan.requests, operator)) for _ in range(TURNS)
        ]
    return {"alone": [grpc for grpc, _ in turns], "alone_http": [http for _, http in turns]}


def _weigh(server: Server) -> dict[str, Any]:
    """Memory after the load."""
    return {"memory_bytes": server.process.memory_bytes()}


def _run(module: str, *arguments: str) -> str:
    """What a command of this project prints. Raises `Failure` with its message."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"python -m {module} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
