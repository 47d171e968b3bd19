"""The InferenceService: what KServe takes, and planted mistakes that it would not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.docker.files import MANIFESTS
from tests.docker.kserve import complaints

SERVICE = MANIFESTS["inferenceservice InferenceService bert"]


def test_kserve_takes_it() -> None:
    assert complaints(SERVICE) == []


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another API": (lambda it: it.update(apiVersion="serving.kserve.io/v1alpha1"), "v1beta1"),
    "an unknown field of the service": (lambda it: it["spec"].update(predictors={}), "predictors"),
    "two implementations": (lambda it: it["spec"]["predictor"].update(triton={}), "$.spec.predictor: False schema"),
    "a field of another type": (lambda it: it["spec"]["predictor"].update(minReplicas="2"), "minReplicas"),
    "an unknown mode": (lambda it: annotate(it, "deploymentMode", "standard"), "Standard"),
    "an unknown autoscaler": (lambda it: annotate(it, "autoscalerClass", "own"), "'own' is not one of"),
    "an annotation misspelt": (
        lambda it: annotate(it, "autoscalerclass", "external"),
        "False schema does not allow 'external'",
    ),
    "Knative's metric": (lambda it: scaled(it, "hpa", scaleMetric="concurrency"), "is Knative's"),
    "a setting that does nothing": (lambda it: scaled(it, "external", maxReplicas=8), "maxReplicas does nothing"),
    "another container": (lambda it: server(it).update(name="server"), "kserve-container"),
    "another protocol": (lambda it: server(it)["env"][0].update(value="grpc-v2"), "PROTOCOL is grpc-v2"),
    "no protocol": (lambda it: server(it).pop("env"), "PROTOCOL is v1"),
    "a processor less than asked for": (lambda it: server(it)["resources"]["limits"].pop("cpu"), "limits without cpu"),
    "two ports": (lambda it: server(it)["ports"].append({"containerPort": 8001}), "one port"),
}


def annotate(service: dict[str, Any], name: str, value: str) -> None:
    service["metadata"]["annotations"][f"serving.kserve.io/{name}"] = value


def scaled(service: dict[str, Any], autoscaler: str, **fields: Any) -> None:
    annotate(service, "autoscalerClass", autoscaler)
    service["spec"]["predictor"].update(fields)


def server(service: dict[str, Any]) -> Any:
    return service["spec"]["predictor"]["containers"][0]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str) -> None:
    plant, said = MISTAKES[name]
    service = copy.deepcopy(SERVICE)
    plant(service)
    assert any(said in complaint for complaint in complaints(service)), complaints(service)
