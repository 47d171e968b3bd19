"""The rounds of a comparison: environments, exported models, one server after the other, and what is kept of each."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from contract.command import Failure, UsageError
from contract.files import read_json_lines, sha256_of, write_json, write_json_lines
from contract.release import read_manifest
from contract.tensors import ENGINE, TOKENIZER
from loadtests.alone import measure_alone
from loadtests.deployment import publish_alone
from loadtests.machine import describe_machine
from loadtests.operator import Operator
from loadtests.peers.book import Book
from loadtests.peers.catalogue import Launch, Peer, processor_flags
from loadtests.peers.environments import REQUIREMENTS, interpreter, versions
from loadtests.peers.export import export_onnx
from loadtests.peers.goals import OURS
from loadtests.peers.measure import USERS, Plan, measure_round, settle
from loadtests.peers.process import free_port
from loadtests.peers.servers import Server, cut_texts, serve_ours, serve_peer
from loadtests.target import waiting
from loadtests.texts import read_texts

SAMPLE = 2000
TIMEOUT_S = 15.0
AT_PEERS = "0.8"
"""The peers' open loop whose rate ours is met with as well."""


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
            "requirements": {path.stem: sha256_of(path) for path in sorted(REQUIREMENTS.glob("*.txt"))},
        }

    def measure_round(self, number: int, peers: list[Peer], *, ours: bool) -> None:
        """Measure what is not finished of a round; every second round goes through the peers backwards."""
        for peer in peers if number % 2 else reversed(peers):
            if peer.name in self.book.finished(number):
                continue
            print(f"round {number}: {peer.name}", file=sys.stderr, flush=True)
            try:
                self.book.keep(number, peer.name, self._measure_peer(peer))
            except Failure as error:
                self.failed[peer.name] = str(error)
                self.book.fail(peer.name, str(error))
        done = self.book.finished(number)
        rates = {name: found["open"][AT_PEERS]["rate"] for name, found in done.items() if name != OURS}
        if ours and set(done.get(OURS, {"at": {"": 0}})["at"]) != set(rates):
            print(f"round {number}: {OURS}", file=sys.stderr, flush=True)
            self.book.keep(number, OURS, self._measure_ours(rates))

    def _measure_peer(self, peer: Peer) -> dict[str, Any]:
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
            return (
                self._facts(server, cut=peer.onnx)
                | measure_round(peer.name, server.target, plan, cpu_s=server.process.cpu_s)
                | _weigh(server)
            )

    def _measure_ours(self, rates: dict[str, float]) -> dict[str, Any]:
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
            settle(server.process.cpu_s)
            with waiting(server.operator.grpc_url, plan.requests, timeout_s=TIMEOUT_S) as send:
                measured["alone"] = measure_alone(send, plan.requests, server.operator)
            weight, config = _weigh(server), _engine_config(server.operator)
        bare = self._bare(repository, config)
        return agreed | measured | weight | {"bare_per_s": bare, "cores": self._cores}

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

    def _bare(self, repository: Path, config: dict[str, Any]) -> float:
        """Texts per second of our engine without a server, its batches as large as the most that was in flight."""
        folder = repository / ENGINE
        version = max(path.name for path in folder.iterdir() if path.name.isdecimal())
        write_json(self.work / "engine_config.json", config)
        files = (folder, version, self.work / "engine_config.json", self.release / TOKENIZER / "tokenizer.json", self.texts)
        said = _run("loadtests.peers.bare", *map(str, (*files, self.seed, max(USERS), self.seconds)))
        return float(json.loads(said)["texts_per_s"])


def _weigh(server: Server) -> dict[str, Any]:
    """Memory after the load."""
    return {"memory_bytes": server.process.memory_bytes()}


def _engine_config(operator: Operator) -> dict[str, Any]:
    return operator.config(ENGINE)


def _run(module: str, *arguments: str) -> str:
    """What a command of this project prints. Raises `Failure` with its message."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"python -m {module} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
