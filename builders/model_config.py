"""The `config.pbtxt` of each model, rendered through Triton's own protobuf class from what `contract` says.

    python -m builders.model_config model_repository      renders the committed files again

`bert_engine` has one config per kind of hardware: TensorRT in `config.pbtxt`, the CPU engine in `configs/cpu.pbtxt`
(`tritonserver --model-config-name=cpu`; models without such a file fall back to `config.pbtxt`), and the container's own
ONNX Runtime in `configs/onnxruntime.pbtxt`. Nothing here depends on a trained model: the number of classes is -1, versions and
labels belong to the deployment.

The container's own OpenVINO has no config, because it cannot serve these releases: its batches have exactly `max_batch_size`
rows (https://github.com/triton-inference-server/server/issues/7363), and it can be told bf16 but not fp32 (its HINT_BF16 knows
only YES), where OpenVINO computes in bf16 by itself where a processor has it. The CPU engine serves them in the container too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from contract.command import run_command
from contract.files import write_bytes
from contract.tensors import (
    ATTENTION_MASK,
    BUCKET_LENGTHS,
    CANDIDATE,
    CLASSIFIER,
    ENGINE,
    INPUT_IDS,
    LOGITS,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    MAX_TEXT_BYTES,
    MAX_WAIT_MS,
    RELEASE,
    TEXT,
    TOKENIZER,
    TRUNCATED,
)

_FIRST_VERSION = 1

_TEXT = {"name": TEXT, "data_type": "TYPE_STRING", "dims": [1]}
_IDS = {"name": INPUT_IDS, "data_type": "TYPE_INT32", "dims": [-1]}
_MASK = {"name": ATTENTION_MASK, "data_type": "TYPE_INT32", "dims": [-1]}
_TRUNCATED = {"name": TRUNCATED, "data_type": "TYPE_BOOL", "dims": [1]}
_RELEASE = {"name": RELEASE, "data_type": "TYPE_STRING", "dims": [1]}
_LOGITS = {"name": LOGITS, "data_type": "TYPE_FP32", "dims": [-1]}

# No queue delay: while the engine is busy the next batch fills by itself, and an idle engine should not wait for company.
# No queue policy either: with one, server 2.51 stops prefetching, and requests wait up to 0.5 s before idle instances. The
# work of the python steps is bounded by the tokenizer, which refuses what the engine could not do in time (`max_wait_ms`).
_STEP = {
    "max_batch_size": MAX_BATCH_SIZE,
    "version_policy": {"specific": {"versions": [_FIRST_VERSION]}},
    "dynamic_batching": {},
}
# The tokenizer does not see how far an engine outside of the python backend is. Its full queue answers at once instead, with
# UNAVAILABLE.
_BOUNDED_QUEUE = {"default_queue_policy": {"max_queue_size": MAX_QUEUE_SIZE}}


def _parameters(**values: str) -> dict[str, Any]:
    return {key: {"string_value": value} for key, value in values.items()}


def tokenizer_config() -> dict[str, Any]:
    """The python-backend tokenizer: texts in, padded token ids out."""
    return {
        "name": TOKENIZER,
        "backend": "python",
        **_STEP,
        "input": [_TEXT],
        "output": [_IDS, _MASK, _TRUNCATED, _RELEASE],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": _parameters(
            bucket_lengths=",".join(map(str, BUCKET_LENGTHS)), max_text_bytes=str(MAX_TEXT_BYTES), max_wait_ms=str(MAX_WAIT_MS)
        ),
    }


def tensorrt_engine_config() -> dict[str, Any]:
    """The TensorRT engine: `model.plan` on each GPU."""
    return {
        "name": ENGINE,
        "platform": "tensorrt_plan",
        **_STEP,
        "dynamic_batching": _BOUNDED_QUEUE,
        "input": [_IDS, _MASK],
        "output": [_LOGITS],
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
    }


def cpu_engine_config() -> dict[str, Any]:
    """The CPU engine: ONNX Runtime, OpenVINO or torch in the python backend, one instance over all cores.

    Ragged inputs let requests of different lengths share one call: the engine groups their rows by length itself.
    """
    return {
        "name": ENGINE,
        "backend": "python",
        **_STEP,
        "input": [{**tensor, "allow_ragged_batch": True} for tensor in (_IDS, _MASK)],
        "output": [_LOGITS],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": _parameters(threads="0"),
    }


def onnxruntime_engine_config() -> dict[str, Any]:
    """The same releases on the ONNX Runtime of NVIDIA's container: requests of one padded length share a batch.

    That backend wants the number of classes, which publishing a release writes here, as it does instances and threads.
    """
    return {
        "name": ENGINE,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        **_STEP,
        "dynamic_batching": _BOUNDED_QUEUE,
        "input": [_IDS, _MASK],
        "output": [_LOGITS],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "parameters": _parameters(intra_op_thread_count="0", execution_mode="0"),  # every core; one operator after the other
    }


def classifier_config() -> dict[str, Any]:
    """The ensemble that clients call. Its pins and its labels file name the version that serves."""
    return _ensemble_config(CLASSIFIER)


def candidate_config() -> dict[str, Any]:
    """The same once more, for a canary's share of the requests: pinned to the candidate, or to what serves without one."""
    return _ensemble_config(CANDIDATE)


def _ensemble_config(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": MAX_BATCH_SIZE,
        "input": [_TEXT],
        "output": [{**_LOGITS, "label_filename": f"labels-{_FIRST_VERSION}.txt"}, _TRUNCATED, _RELEASE],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": TOKENIZER,
                    "model_version": _FIRST_VERSION,
                    "input_map": {TEXT: TEXT},
                    "output_map": {name: name for name in (INPUT_IDS, ATTENTION_MASK, TRUNCATED, RELEASE)},
                },
                {
                    "model_name": ENGINE,
                    "model_version": _FIRST_VERSION,
                    "input_map": {name: name for name in (INPUT_IDS, ATTENTION_MASK)},
                    "output_map": {LOGITS: LOGITS},
                },
            ]
        },
    }


CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    f"{TOKENIZER}/config.pbtxt": tokenizer_config,
    f"{ENGINE}/config.pbtxt": tensorrt_engine_config,
    f"{ENGINE}/configs/cpu.pbtxt": cpu_engine_config,
    f"{ENGINE}/configs/onnxruntime.pbtxt": onnxruntime_engine_config,
    f"{CLASSIFIER}/config.pbtxt": classifier_config,
    f"{CANDIDATE}/config.pbtxt": candidate_config,
}
"""Where each config lies in a repository."""


def render(config: dict[str, Any]) -> bytes:
    """The text form of a config. Raises json_format.ParseError for a field that Triton does not have."""
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    return text_format.MessageToString(message).encode()


def parse(text: bytes) -> dict[str, Any]:
    """The dict of a config's text form, with Triton's field names. Raises text_format.ParseError for what is none."""
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    values: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return values


def render_configs(repository: Path) -> None:
    """Write every config into `repository`."""
    for name, build in CONFIGS.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, render(build()))


@dataclass(frozen=True, kw_only=True)
class Render:
    """Render the config.pbtxt files of a model repository."""

    repository: Annotated[Path, tyro.conf.Positional]
    """Folder to write them into."""


if __name__ == "__main__":
    run_command(
        lambda: render_configs(tyro.cli(Render, prog="python -m builders.model_config", description=__doc__).repository)
    )
