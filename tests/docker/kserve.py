"""What KServe takes for an InferenceService whose predictor is a pod of our own: a schema, and its rules beyond one.

Names and types are those of the package kserve 0.21.0 (kserve/models/v1beta1_*.py), whose requirements exclude ours; the rules
are those of its webhooks (kserve/kserve, pkg/apis/serving/v1beta1: inference_service_validation.go,
inference_service_defaults.go and predictor_custom.go). The fields of the pod itself are Kubernetes' own: `pod_spec` of
tests/docker/files.py.
"""

from __future__ import annotations

from typing import Any

import jsonschema

INTEGER = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
EXTENSION: dict[str, Any] = {
    "annotations": TEXTS,
    "autoScaling": {"type": "object"},
    "batcher": {"type": "object"},
    "canaryTrafficPercent": INTEGER | {"maximum": 100},
    "containerConcurrency": INTEGER,
    "deploymentStrategy": {"type": "object"},
    "labels": TEXTS,
    "logger": {"type": "object"},
    "maxReplicas": INTEGER,
    "minReplicas": INTEGER,
    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
    "scaleMetricType": {"enum": ["Utilization", "AverageValue"]},
    "scaleTarget": INTEGER,
    "timeout": INTEGER,
}
"""What a predictor has beside the fields of a pod (ComponentExtensionSpec)."""

FRAMEWORKS = [
    *("huggingface", "lightgbm", "model", "onnx", "paddle", "pmml"),
    *("pytorch", "sklearn", "tensorflow", "triton", "xgboost"),
]
"""Predictors that are no pod of one's own; KServe wants exactly one implementation."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {
            "required": ["name"],
            "properties": {
                "name": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                "annotations": {
                    "additionalProperties": {"type": "string"},
                    "patternProperties": {"^serving\\.kserve\\.io/(?!deploymentMode$|autoscalerClass$)": False},
                    "properties": {
                        "serving.kserve.io/deploymentMode": {"const": "Standard"},  # ours: several volumes, no Knative
                        "serving.kserve.io/autoscalerClass": {"enum": ["hpa", "keda", "external", "none"]},
                    },
                    "required": ["serving.kserve.io/deploymentMode"],
                },
            },
        },
        "spec": {
            "additionalProperties": False,
            "required": ["predictor"],
            "properties": {
                "predictor": {
                    "required": ["containers"],
                    "properties": EXTENSION | dict.fromkeys(FRAMEWORKS, False),
                }
            },
        },
    },
}


def complaints(service: dict[str, Any]) -> list[str]:
    """What KServe would refuse, or change behind our back; the pod's own fields are not looked at."""
    found = [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(service)]
    return found or [*_scaling(service), *_container(service["spec"]["predictor"])]


def _scaling(service: dict[str, Any]) -> list[str]:
    """In the mode Standard KServe's own autoscaler knows two metrics; without KServe's, its settings say nothing."""
    predictor = service["spec"]["predictor"]
    by_whom = service["metadata"]["annotations"].get("serving.kserve.io/autoscalerClass", "hpa")
    if by_whom == "hpa":
        wrong = predictor.get("scaleMetric", "cpu") not in {"cpu", "memory"}
        return [f"scaleMetric {predictor['scaleMetric']} is Knative's"] if wrong else []
    idle = {"scaleMetric", "scaleTarget", "scaleMetricType"} | ({"maxReplicas", "autoScaling"} if by_whom != "keda" else set())
    return [f"{field} does nothing with the autoscaler {by_whom}" for field in sorted(idle & set(predictor))]


def _container(predictor: dict[str, Any]) -> list[str]:
    """The container is found by its name; resources that it leaves open are filled in, with a limit of one processor."""
    servers = [each for each in predictor["containers"] if each["name"] == "kserve-container"]
    if len(servers) != 1:
        return ["one container is named kserve-container"]
    (server,) = servers
    found = [
        f"{kind} without {name}: KServe fills in its own"
        for kind in ("requests", "limits")
        for name in ("cpu", "memory")
        if name not in server.get("resources", {}).get(kind, {})
    ]
    protocol = {each["name"]: each["value"] for each in server.get("env", [])}.get("PROTOCOL", "v1")
    if protocol != "v2":  # v1 is allowed as well, but Triton does not speak it
        found.append(f"PROTOCOL is {protocol}; Triton speaks v2")
    if len(server["ports"]) != 1:
        found.append("the service leads to the one port of the container")
    return found
