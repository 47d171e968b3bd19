"""The child of `serving.rehearsal`: loads python models of a release as Triton's stub would, and runs texts through them.

Run as a file by a Python of its own, with the order as JSON on standard input and the result on standard output. It imports
the standard library and what the models import, nothing of ours: it stands where the stub will stand.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

AUTOGROUP = Path("/proc/self/autogroup")


class Tensor:
    """`pb_utils.Tensor`: a named array."""

    def __init__(self, name: str, numpy_array: Any) -> None:
        self._name, self._array = name, numpy_array

    def name(self) -> str:
        """Its name."""
        return self._name

    def as_numpy(self) -> Any:
        """Its array."""
        return self._array

    def is_cpu(self) -> bool:
        """Always."""
        return True


class TritonError:
    """`pb_utils.TritonError`."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        """Why."""
        return self._message

    def code(self) -> int:
        """One of the constants."""
        return self._code


class TritonModelException(Exception):  # noqa: N818 - the backend's own name
    """`pb_utils.TritonModelException`."""


class InferenceRequest:
    """`pb_utils.InferenceRequest`: the tensors of one request."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self._tensors = {name: Tensor(name, array) for name, array in tensors.items()}

    def inputs(self) -> list[Tensor]:
        """All tensors."""
        return list(self._tensors.values())

    def named(self, name: str) -> Tensor | None:
        """One of them."""
        return self._tensors.get(name)

    def request_id(self) -> str:
        """None was given."""
        return ""

    def parameters(self) -> str:
        """None were given."""
        return "{}"

    def is_cancelled(self) -> bool:
        """Never."""
        return False


class InferenceResponse:
    """`pb_utils.InferenceResponse`: tensors, or an error."""

    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        """The tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether it failed."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Why."""
        return self._error


class Metric:
    """One metric, which nobody scrapes here."""

    def __init__(self, labels: dict[str, str] | None = None, **_: Any) -> None:
        self._value = 0.0

    def increment(self, value: float) -> None:
        """Add."""
        self._value += value

    def set(self, value: float) -> None:
        """Replace."""
        self._value = value

    def value(self) -> float:
        """As counted."""
        return self._value


class MetricFamily:
    """`pb_utils.MetricFamily`."""

    COUNTER, GAUGE, HISTOGRAM = range(3)

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: dict[str, str] | None = None, **more: Any) -> Metric:  # noqa: N802 - the backend's own name
        """A metric of this family."""
        return Metric(labels, **more)


class Logger:
    """`pb_utils.Logger`, onto standard error."""

    @staticmethod
    def log(message: str, *_: Any) -> None:
        """Say it."""
        print(message, file=sys.stderr)

    log_info = log_warn = log_error = log_verbose = log


def backend_module() -> types.ModuleType:
    """A stand-in for `triton_python_backend_utils`, which exists only inside Triton's stub."""
    module = types.ModuleType("triton_python_backend_utils")
    for value in (Tensor, TritonError, TritonModelException, InferenceRequest, InferenceResponse, Metric, MetricFamily, Logger):
        setattr(module, value.__name__, value)
    vars(module)["get_input_tensor_by_name"] = lambda request, name: request.named(name)
    return module


def start(folder: Path, version: str, config: dict[str, Any]) -> Any:
    """The initialised `TritonPythonModel` of `folder`/`version`."""
    spec = importlib.util.spec_from_file_location(f"{folder.name}_model", folder / version / "model.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{folder / version} has no model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    arguments = {
        "model_config": json.dumps(config),
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_instance_name": f"{config['name']}_0_0",
        "model_repository": str(folder),
        "model_version": version,
        "model_name": config["name"],
    }
    if hasattr(model, "initialize"):
        model.initialize(arguments)
    return model


def run(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """The arrays that the model answers one request with. Raises RuntimeError with the model's own refusal."""
    (response,) = model.execute([InferenceRequest(tensors)])
    if response.has_error():
        raise RuntimeError(response.error().message())
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def rehearse(order: dict[str, Any]) -> dict[str, Any]:
    """Start each step in its turn and hand the texts through; see `serving.rehearsal` for the order and the result."""
    import numpy as np

    seconds: dict[str, float] = {}
    arrays: dict[str, Any] = {"TEXT": np.array([[text.encode()] for text in order["texts"]], dtype=np.object_)}
    if order["features"]:
        arrays["features"] = np.array(order["features"], dtype=np.float32)
    for step in order["steps"]:
        started = time.perf_counter()
        config = step["config"]
        model = start(Path(step["folder"]), order["version"], config)
        seconds[config["name"]] = time.perf_counter() - started
        arrays |= run(model, {tensor["name"]: arrays[tensor["name"]] for tensor in config["input"]})
    seconds["answers"] = time.perf_counter() - started - seconds[config["name"]]
    installed = {}
    for package in order["packages"]:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = ""
    return {
        "release": arrays["release"][0, 0].decode(),
        "logits": arrays["logits"].tolist() if "logits" in arrays else [],
        "seconds": seconds,
        "installed": installed,
    }


def give_way(niceness: int) -> None:
    """Lower the priority of this process and of its session, which is its own; 0 changes nothing.

    Where the kernel shares the processors out by session first (autogroup), niceness counts among the processes of one session
    only: without this the rehearsal would take half of a core from the server, at 5 or at 19.
    """
    os.nice(niceness)
    with contextlib.suppress(OSError):  # no such file: the kernel does not group
        AUTOGROUP.write_text(str(niceness))


def main() -> None:
    """Read the order, be polite, answer. What a model prints goes to standard error."""
    order = json.load(sys.stdin)
    give_way(order["niceness"])
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.dont_write_bytecode = True
    sys.modules["triton_python_backend_utils"] = backend_module()
    json.dump(rehearse(order), answer)
    answer.close()
    os._exit(0)  # what the runtimes do as they are torn down says nothing about the release


if __name__ == "__main__":
    main()
