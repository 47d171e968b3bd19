"""Load `model_repository/MODEL/1/model.py` as Triton's stub does.

The stub appends the version folder and the model folder to `sys.path` and imports `1.model`:
https://github.com/triton-inference-server/python_backend/blob/r24.10/src/pb_stub.cc, `StubSetup`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.served import engine_module
from tests.model_repository import fake_backend

SOURCE = Path(__file__).resolve().parents[2] / "model_repository"


def load_module(model: str) -> Any:
    """The module `1.model`, loaded with the fake backend; `sys` is left as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setattr(sys, "path", [*sys.path, str(SOURCE / model / "1"), str(SOURCE / model)])
        patch.setitem(sys.modules, "triton_python_backend_utils", fake_backend)
        importlib.invalidate_caches()
        try:
            module: Any = importlib.import_module("1.model")
        finally:
            for name in ("1.model", "1"):
                sys.modules.pop(name, None)
    if hasattr(module, "openvino_core"):
        module.openvino_core = engine_module().openvino_core  # one for the process, though this module is loaded many times
    return module


def start_model(module: Any, folder: Path, config: dict[str, Any], **parameters: str) -> Any:
    """An initialised `TritonPythonModel` of the version folder `folder`/1, with these parameters of its config changed."""
    changed = config["parameters"] | {key: {"string_value": value} for key, value in parameters.items()}
    model = module.TritonPythonModel()
    arguments = {"model_config": json.dumps(config | {"parameters": changed}), "model_instance_name": f"{config['name']}_0_0"}
    model.initialize(arguments | {"model_repository": str(folder), "model_version": "1", "model_name": config["name"]})
    return model
