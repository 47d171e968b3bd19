"""The deployment files, read as what reads them would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.docker.kserve import EXTENSION

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile.server", DOCKER / "Dockerfile.builder"]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
GPU: dict[str, Any] = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
MANIFESTS: dict[str, dict[str, Any]] = {
    f"{path.stem} {document['kind']} {document['metadata']['name']}": document
    for path in sorted((DOCKER / "kubernetes").rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
}
ADAPTER = MANIFESTS["prometheus-adapter ConfigMap bert-prometheus-adapter"]
(ADAPTER_RULE,) = yaml.safe_load(ADAPTER["data"]["config.yaml"])["rules"]
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size_in_bytes(text: str) -> int:
    """`128m` of compose and `128Mi` of Kubernetes in bytes."""
    match = re.fullmatch(r"(\d+)([kmg]|[KMG]i)", text)
    assert match is not None, f"{text} is no size with a unit"
    return int(match[1]) * UNITS[match[2]]


def instruction(dockerfile: Path, name: str) -> list[str]:
    """The arguments of the instruction, which is in the exec form."""
    match = re.search(rf"^{name} .*?(\[.*\])$", dockerfile.read_text(encoding="utf-8"), re.M)
    assert match is not None, f"{dockerfile} has no {name} in the exec form"
    words = json.loads(match[1])
    assert isinstance(words, list)
    return words


def default_of(dockerfile: Path, argument: str) -> str:
    """The default of a build argument."""
    match = re.search(rf"^ARG {argument}=(\S+)$", dockerfile.read_text(encoding="utf-8"), re.M)
    assert match is not None, f"{dockerfile} has no ARG {argument}"
    return match[1]


def container(name: str, pod: str = "deployment Deployment bert") -> dict[str, Any]:
    """A container of a manifest's pod."""
    (found,) = [each for each in pod_spec(MANIFESTS[pod])["containers"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


def pod_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a pod of the manifest is made of."""
    if manifest["kind"] == "Deployment":
        spec = manifest["spec"]["template"]["spec"]
    else:
        spec = {key: value for key, value in manifest["spec"]["predictor"].items() if key not in EXTENSION}
    assert isinstance(spec, dict)
    return spec
