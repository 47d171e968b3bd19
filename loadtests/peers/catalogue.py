"""The servers that are compared: how each is started and asked.

Every peer serves the merged checkpoint as a plain Hugging Face folder. "Default" is what its documentation begins with, in the
checkpoint's own fp32; "best" is its batching, where it has one, in the fastest precision that it offers on this processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.files import write_json

APPS = "loadtests.peers.apps"
MAX_BATCH = 32
MAX_WAIT_MS = 5.0


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a peer is started with."""

    model: Path
    """Hugging Face folder."""
    onnx: Path
    """Folders of the same for ONNX Runtime, by precision, exported by the peer's own tools."""
    python: Path
    """Of the peer's environment."""
    work: Path
    """Folder for files that the server reads or writes."""
    port: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One server in one setting."""

    name: str
    title: str
    settings: str
    """What was set, in words."""
    environment: str
    """Stem of its file in `requirements/`, and name of its virtual environment."""
    versions: tuple[str, ...]
    """Packages whose versions stand beside the figures."""
    command: Callable[[Launch], list[str]]
    precision: str = "float32"
    best: bool = False
    """Its fastest setting, not its default."""
    max_batch: int = 1
    path: str = "/classify"
    body: Callable[[str], Any] = lambda text: {"text": text}
    label: Callable[[Any], str] = lambda answer: str(answer["label"])
    onnx: bool = False
    """Served out of `Launch.onnx`. Texts are cut to the model's length before they are sent: this server does not cut."""

    def folder(self, launch: Launch) -> Path:
        """Where the server starts."""
        return launch.onnx / self.precision if self.onnx else Path(__file__).resolve().parents[2]

    def variables(self, launch: Launch) -> dict[str, str]:
        """Environment variables that it is started with."""
        return QUIET | {
            "PEER_MODEL": str(launch.model.resolve()),
            "PEER_DTYPE": self.precision,
            "PEER_THREADS": str(launch.threads),
            "PEER_MAX_BATCH": str(self.max_batch),
            "PEER_MAX_WAIT_MS": str(MAX_WAIT_MS),
            "OMP_NUM_THREADS": str(launch.threads),  # Ray would give a worker one
            "HF_HOME": str(launch.work.resolve()),
        }


QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}
"""No peer reports to its makers, looks for a hub, or leaves a token in the home folder."""


def processor_flags() -> frozenset[str]:
    """What the kernel says that this processor can do."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.partition(":")[2].split())


def best_dtype(flags: frozenset[str]) -> str:
    """bfloat16 where the processor multiplies in it, else float32: emulated, it is many times slower."""
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"


def catalogue(flags: frozenset[str]) -> list[Peer]:
    """All peers; `flags` are the processor's."""
    fast = best_dtype(flags)
    together = f"batches of up to {MAX_BATCH}, {MAX_WAIT_MS:g} ms"
    batched: dict[str, Any] = {"best": True, "precision": fast, "max_batch": MAX_BATCH}
    alone = "defaults, fp32, one text a call"
    return [
        Peer(name="infinity", settings="defaults, torch, fp32", **_infinity("torch")),
        Peer(name="infinity-best", settings=f"torch, {fast}", best=True, precision=fast, **_infinity("torch", "--dtype", fast)),
        Peer(name="infinity-onnx", settings="optimum, ONNX Runtime, fp32", onnx=True, **_infinity("optimum")),
        Peer(
            name="infinity-onnx-best",
            settings="optimum, ONNX Runtime, int8",
            onnx=True,
            best=True,
            precision="int8",
            **_infinity("optimum"),
        ),
        Peer(name="fastapi", settings=alone, **_FASTAPI),
        Peer(name="fastapi-best", settings=f"{fast}, {together}", **_FASTAPI, **batched),
        Peer(name="ray", settings=f"fp32, {together}", max_batch=MAX_BATCH, **_RAY),
        Peer(name="ray-best", settings=f"{fast}, {together}", **_RAY, **batched),
        Peer(name="bentoml", settings=alone, **_BENTOML),
        Peer(name="bentoml-best", settings=f"{fast}, its adaptive batching, up to {MAX_BATCH}", **_BENTOML, **batched),
        Peer(name="mlserver", settings=alone, command=_mlserver(1), **_MLSERVER),
        Peer(
            name="mlserver-best",
            settings=f"{fast}, its adaptive batching, up to {MAX_BATCH}",
            command=_mlserver(MAX_BATCH),
            **_MLSERVER,
            **batched,
        ),
    ]


def _infinity(engine: str, *options: str) -> dict[str, Any]:
    def command(launch: Launch) -> list[str]:
        # In its own folder the model is ".": with a longer path this version does not find the ONNX file.
        model = str(launch.model.resolve()) if engine == "torch" else "."
        return [
            *(str(launch.python.with_name("infinity_emb")), "v2", "--model-id", model, "--served-model-name", "peer"),
            *("--host", "127.0.0.1", "--port", str(launch.port), "--engine", engine, "--device", "cpu", *options),
            "--no-vector-disk-cache",  # texts come again in a load test, and an answer out of a cache is none of the model's
            *(["--no-model-warmup"] if engine == "optimum" else []),  # its warm-up texts are longer than BERT reads
        ]

    packages = ("torch", "transformers") if engine == "torch" else ("optimum-onnx", "onnxruntime")
    return {
        "title": "infinity",
        "environment": "infinity",
        "versions": ("infinity-emb", *packages),
        "command": command,
        "body": lambda text: {"model": "peer", "input": [text]},
        "label": lambda answer: str(max(answer["data"][0], key=lambda entry: entry["score"])["label"]),
    }


def _module(name: str) -> Callable[[Launch], list[str]]:
    return lambda launch: [str(launch.python), "-m", f"{APPS}.{name}", str(launch.port)]


def _bentoml(launch: Launch) -> list[str]:
    service = f"{APPS}.bentoml_service:Classifier"
    return [str(launch.python.with_name("bentoml")), "serve", service, "--host", "127.0.0.1", "--port", str(launch.port)]


def _mlserver(max_batch: int) -> Callable[[Launch], list[str]]:
    def command(launch: Launch) -> list[str]:
        ports = {"http_port": launch.port, "grpc_port": 0, "metrics_port": 0}
        write_json(launch.work / "settings.json", {"host": "127.0.0.1", "parallel_workers": 0, **ports})
        batching = {"max_batch_size": max_batch, "max_batch_time": MAX_WAIT_MS / 1000} if max_batch > 1 else {}
        runtime = {"name": "peer", "implementation": f"{APPS}.mlserver_runtime.Classifier"}
        write_json(launch.work / "model-settings.json", runtime | batching)
        return [str(launch.python.with_name("mlserver")), "start", str(launch.work.resolve())]

    return command


_MODEL = ("torch", "transformers")
_FASTAPI: Mapping[str, Any] = {
    "title": "transformers behind FastAPI",
    "environment": "fastapi",
    "versions": ("fastapi", "uvicorn", *_MODEL),
    "command": _module("fastapi_server"),
}
_RAY: Mapping[str, Any] = {
    "title": "Ray Serve",
    "environment": "ray",
    "versions": ("ray", *_MODEL),
    "command": _module("ray_server"),
}
_BENTOML: Mapping[str, Any] = {
    "title": "BentoML",
    "environment": "bentoml",
    "versions": ("bentoml", *_MODEL),
    "command": _bentoml,
    "body": lambda text: {"texts": [text]},
    "label": lambda answer: str(answer[0]),
}
_MLSERVER: Mapping[str, Any] = {
    "title": "MLServer",
    "environment": "mlserver",
    "versions": ("mlserver", *_MODEL),
    "path": "/v2/models/peer/infer",
    "body": lambda text: {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]},
    "label": lambda answer: str(answer["outputs"][0]["data"][0]),
}
