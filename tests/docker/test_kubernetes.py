"""The manifests: valid against Kubernetes' own schemas, and of one piece."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from serving.launch import DRAIN_TIMEOUT_S
from serving.proxy import Proxy
from tests.docker.files import ADAPTER_RULE, MANIFESTS, container, pod_spec

DEPLOYMENT = MANIFESTS["deployment Deployment bert"]
INFERENCE = MANIFESTS["inferenceservice InferenceService bert"]
PODS = {"Deployment": pod_spec(DEPLOYMENT), "InferenceService": pod_spec(INFERENCE)}
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def as_pod(spec: dict[str, Any]) -> dict[str, Any]:
    """A pod of its own, so that a pod inside a resource without a schema is validated as well."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": spec}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [name for name in MANIFESTS if " InferenceService " not in name])
def test_a_manifest_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_the_pod_of_the_inference_service_is_valid_and_a_planted_mistake_is_found() -> None:
    assert INFERENCE["apiVersion"] == "serving.kserve.io/v1beta1"
    assert set(INFERENCE["spec"]) == {"predictor"}
    pod = as_pod(PODS["InferenceService"])
    kubernetes_validate.validate(pod, VERSIONS[1], strict=True)
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[1], strict=True)


def test_the_parts_find_each_other() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    for name in ("bert", "bert-grpc"):
        service = MANIFESTS[f"service Service {name}"]["spec"]
        assert service["selector"] == labels
        ports = {port["name"] for port in container("nginx")["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports
    assert MANIFESTS["service PodDisruptionBudget bert"]["spec"]["selector"]["matchLabels"] == labels
    policy = MANIFESTS["service NetworkPolicy bert"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["egress"] == []
    named = {port["name"] for each in PODS["Deployment"]["containers"] for port in each["ports"]}
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == named
    budget = MANIFESTS["service PodDisruptionBudget bert"]["spec"]["minAvailable"]
    assert budget < DEPLOYMENT["spec"]["replicas"]


@pytest.mark.parametrize(("where", "target"), [("autoscaling", "bert"), ("inferenceservice", "bert-predictor")])
def test_the_autoscaler_asks_for_the_metric_that_the_adapter_offers(where: str, target: str) -> None:
    scaler = MANIFESTS[f"{where} HorizontalPodAutoscaler bert"]["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    assert [metric["pods"]["metric"]["name"] for metric in scaler["metrics"]] == [ADAPTER_RULE["name"]["as"]]
    assert scaler["minReplicas"] == DEPLOYMENT["spec"]["replicas"]
    assert scaler == MANIFESTS["autoscaling HorizontalPodAutoscaler bert"]["spec"] | {
        "scaleTargetRef": scaler["scaleTargetRef"]
    }


def test_kserve_s_pods_are_found_by_what_is_around_them() -> None:
    name = INFERENCE["metadata"]["name"]
    assert MANIFESTS["inferenceservice HorizontalPodAutoscaler bert"]["spec"]["scaleTargetRef"]["name"] == f"{name}-predictor"
    own = {"serving.kserve.io/inferenceservice": name}  # KServe's label of the pods
    assert MANIFESTS["inferenceservice PodDisruptionBudget bert"]["spec"]["selector"]["matchLabels"] == own
    policy = MANIFESTS["inferenceservice NetworkPolicy bert"]["spec"]
    assert (policy["podSelector"]["matchLabels"], policy["egress"]) == (own, [])
    (served,) = PODS["InferenceService"]["containers"][0]["ports"]
    scraped = INFERENCE["spec"]["predictor"]["annotations"]["prometheus.io/port"]
    opened = [port["port"] for rule in policy["ingress"] for port in rule["ports"]]
    assert opened == [served["containerPort"], int(scraped)]
    assert all(rule["from"] for rule in policy["ingress"])  # nobody reaches the server but over the gateway's limits


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_is_given_the_time_to_answer_what_it_has(kind: str) -> None:
    """First the services leave it out, then the supervisor drains: as long as its server may, and five seconds more."""
    for each in PODS[kind]["containers"]:
        program, pause = each["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "sleep"
        assert PODS[kind]["terminationGracePeriodSeconds"] > int(pause) + max(DRAIN_TIMEOUT_S + 10, Proxy().read_timeout_s)


@pytest.mark.parametrize("kind", PODS)
def test_a_pod_is_confined_and_probed_by_a_real_inference(kind: str) -> None:
    pod = PODS[kind]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod["volumes"]}
    for each in [*pod["initContainers"], *pod["containers"]]:
        confined = each["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in each["resources"]["limits"]
        assert {mount["name"] for mount in each["volumeMounts"]} <= volumes
    server = pod["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["exec"]["command"] == ["python3", "docker/healthcheck.py"]
        assert server[probe]["timeoutSeconds"] > 5  # of the check itself
    assert server["livenessProbe"]["failureThreshold"] > server["readinessProbe"]["failureThreshold"]
