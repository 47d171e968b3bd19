"""Our engine without a server: the very python model that Triton runs, called in a loop with batches that are always full.

    python -m loadtests.peers.bare MODEL_FOLDER VERSION CONFIG.json TOKENIZER.json TEXTS.jsonl SEED BATCH

A process of its own, since the engine's threads and memory are to be those of the server. Its texts are the served ones, in
their order, cut as they are. For each line of standard input, [seconds, turn], it measures that long, begun where the texts of
that turn begin, and prints {"texts_per_s": ...}, so that it can be measured in turn with the server. What the server reaches
against it is what tokenizer, queues, copies and protocol leave of the engine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from contract.child import Child
from contract.command import Failure, UsageError, run_command
from contract.files import read_json
from contract.tensors import ATTENTION_MASK, INPUT_IDS, LOGITS
from loadtests.peers.duel import rotated
from loadtests.peers.process import ROOT
from loadtests.texts import read_texts

WARMUP_CALLS = 5
BACKEND = "triton_python_backend_utils"


class Tensor:
    """What the python backend gives and takes."""

    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        """Of the tensor."""
        return self._name

    def as_numpy(self) -> Any:
        """Its array."""
        return self._array


class Request:
    """Named input tensors."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in tensors.items()}


class Response:
    """Output tensors, or an error."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: Exception | None = None) -> None:
        self.output_tensors, self.error = output_tensors or [], error


class TritonError(Exception):
    """A failed request."""

    INVALID_ARG = INTERNAL = UNAVAILABLE = 0

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)


def backend() -> ModuleType:
    """`triton_python_backend_utils` as far as an engine needs it: without metrics, as older servers are."""
    module: Any = ModuleType(BACKEND)
    module.Tensor, module.InferenceRequest, module.InferenceResponse = Tensor, Request, Response
    module.TritonError = module.TritonModelException = TritonError
    module.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)
    found: ModuleType = module
    return found


def load_engine(folder: Path, version: str, config: dict[str, Any]) -> Any:
    """The initialised TritonPythonModel of `folder`/`version`, as the stub makes it."""
    path = folder / version / "model.py"
    spec = importlib.util.spec_from_file_location("engine_model", path)
    if spec is None or spec.loader is None or not path.exists():
        raise UsageError(f"{path} is no python model")
    module = importlib.util.module_from_spec(spec)
    sys.modules[BACKEND] = backend()
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[BACKEND]
    engine = module.TritonPythonModel()
    engine.initialize(
        {
            "model_config": json.dumps(config),
            "model_instance_kind": "CPU",
            "model_instance_name": folder.name,
            "model_instance_device_id": "0",
            "model_name": folder.name,
            "model_version": version,
            "model_repository": str(folder),
        }
    )
    return engine


def measure_bare(engine: Any, rows: list[list[int]], *, batch: int, seconds: float) -> float:
    """Rows per second, `batch` one-row requests a call. Raises `Failure` when a request fails or an answer has not one row."""
    requests = itertools.cycle(_request(ids) for ids in rows)
    done, started, clock = 0, 0.0, time.perf_counter
    for call in itertools.count(-WARMUP_CALLS):
        if call == 0:
            done, started, requests = 0, clock(), itertools.cycle(_request(ids) for ids in rows)
        if call > 0 and clock() - started >= seconds:
            return done / (clock() - started)
        _run(engine.execute, list(itertools.islice(requests, batch)))
        done += batch
    raise AssertionError("an endless loop ended")


def _request(ids: list[int]) -> Request:
    row = np.array([ids], dtype=np.int32)
    return Request({INPUT_IDS: row, ATTENTION_MASK: np.ones_like(row)})


def _run(execute: Callable[[list[Request]], list[Response]], requests: list[Request]) -> None:
    for response in execute(requests):
        if response.error is not None:
            raise Failure(f"the engine failed: {response.error}")
        logits = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors}[LOGITS]
        if len(logits) != 1:
            raise Failure(f"one row was given, and the answer has the shape {logits.shape}")


@contextlib.contextmanager
def bare_engine(*arguments: str) -> Iterator[Callable[[float, int], float]]:
    """The command as a process that stays open and warm between its measurements: seconds, turn -> texts per second.

    Raises:
        Failure: it ended; with its last words.
    """
    command = [sys.executable, "-m", "loadtests.peers.bare", *arguments]
    with Child(command, "the bare engine ended with code {code}", cwd=str(ROOT)) as child:

        def texts_per_s(seconds: float, turn: int) -> float:
            child.ask([seconds, turn])
            return float(child.answer()["texts_per_s"])

        texts_per_s(0, 0)  # until it is open and warm
        yield texts_per_s


def main() -> None:
    """Run the command; see the module docstring."""
    folder, version, config, tokenizer_json, texts, seed, batch = sys.argv[1:]
    tokenizer = Tokenizer.from_file(tokenizer_json)
    rows = [encoding.ids for encoding in tokenizer.encode_batch(read_texts(Path(texts), seed=int(seed)))]
    engine = load_engine(Path(folder), version, read_json(Path(config)))
    for line in sys.stdin:
        seconds, turn = json.loads(line)
        measured = measure_bare(engine, rotated(rows, turn), batch=int(batch), seconds=seconds)
        print(json.dumps({"texts_per_s": measured}), flush=True)


if __name__ == "__main__":
    run_command(main)
