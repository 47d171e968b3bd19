"""The files of a TensorRT engine in a release or a deployed version, and whether other weights fit into its plan.

model.plan      what Triton loads
graph.onnx      the graph without its weights
engine.json     kind, precision, layout, TensorRT, GPU, profiles, proof
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from builders.external_data import read_onnx
from builders.graph_census import refit_differences
from contract.command import UsageError
from contract.files import read_json
from contract.tensors import LOGITS

PLAN_FILE = "model.plan"
GRAPH_FILE = "graph.onnx"
ENGINE_JSON = "engine.json"
SHOWN = 10


def read_engine_json(folder: Path) -> dict[str, Any]:
    """What the engine in `folder` says of itself. Raises UsageError when it is no TensorRT engine."""
    facts = read_json(folder / ENGINE_JSON)
    if not isinstance(facts, dict) or facts.get("kind") != "tensorrt" or not facts.get("profiles"):
        raise UsageError(f"{folder} holds no TensorRT engine; python -m builders.build --engine tensorrt writes one")
    return facts


def plan_outputs(facts: Mapping[str, Any]) -> list[str]:
    """The outputs of a plan, by what its engine.json says of it."""
    return [LOGITS, *facts.get("outputs", [])]


def check_refittable(folder: Path, trt: Any) -> None:
    """Whether the plan in `folder` takes other weights, with the TensorRT at hand.

    Raises:
        UsageError: the plan is not refittable, or is of another TensorRT.
    """
    facts = read_engine_json(folder)
    if not facts.get("refittable"):
        raise UsageError(f"{folder} was not built --tensorrt.refittable; build a new plan with python -m builders.build")
    runtime = facts["runtime"]
    if trt.__version__ != runtime["version"]:
        raise UsageError(f"the plan is of {runtime['name']} {runtime['version']}, here is {trt.__version__}; build a new one")


def check_weights_fit(folder: Path, graph: onnx.ModelProto) -> None:
    """Compare the plan in `folder` with a graph whose weights are to go in.

    Raises:
        UsageError: it is of another architecture; the message says where the two differ.
    """
    if found := refit_differences(read_onnx(folder / GRAPH_FILE), graph):
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UsageError(f"the weights do not fit into the plan of {folder}:\n  " + "\n  ".join(found[:SHOWN]) + more)
