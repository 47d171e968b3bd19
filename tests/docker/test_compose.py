"""compose.yaml: valid against the Compose specification, hardened, its nginx filled in as `python -m serving.proxy` does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from contract.tensors import MAX_QUEUE_SIZE
from serving.launch import DRAIN_TIMEOUT_S
from serving.nginx import TEMPLATE, find_nginx, placeholders, render
from serving.proxy import LARGEST_BODY
from tests.docker.files import COMPOSE, DOCKER, GPU, MANIFESTS, container
from tests.security.behind import needs_nginx
from tests.security.certificates import Authority

VENDOR = find_spec("check_jsonschema")  # not imported: only the schema that it brings is of use here
RUNNING = {name: service for name, service in COMPOSE["services"].items() if "profiles" not in service}


def complaints(compose: dict[str, Any]) -> list[str]:
    """What the Compose specification does not allow in it."""
    assert VENDOR is not None
    assert VENDOR.origin is not None
    path = Path(VENDOR.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(compose)]


@pytest.mark.skipif(VENDOR is None, reason="check-jsonschema, which brings the Compose specification, is not installed")
def test_both_files_are_valid_and_a_planted_mistake_is_found() -> None:
    assert complaints(COMPOSE) == complaints(GPU) == []
    wrong = json.loads(json.dumps(COMPOSE))
    wrong["services"]["server"]["shm"] = "1g"
    assert complaints(wrong) != []


def test_everything_that_is_named_is_declared() -> None:
    for kind in ("networks", "secrets"):
        used = {name for service in COMPOSE["services"].values() for name in service.get(kind, [])}
        assert used == set(COMPOSE[kind])
    mounts = [mount.split(":") for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    assert {mount[0] for mount in mounts if not mount[0].startswith(".")} == set(COMPOSE["volumes"])
    assert [mount[0] for mount in mounts if mount[0].startswith(".") and not (DOCKER / mount[0]).exists()] == []
    assert set(GPU["services"]) <= set(COMPOSE["services"])


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_confined(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    if name in RUNNING:
        assert service["read_only"] is True
        assert service["healthcheck"]["test"][0] == "CMD"


def test_clients_reach_the_proxy_and_nothing_else() -> None:
    published = {(name, port) for name, service in RUNNING.items() for port in service.get("ports", [])}
    assert {port for port in published if not port[1].startswith("127.0.0.1:")} == {
        ("nginx", "8443:8443"),
        ("nginx", "8444:8444"),
    }
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert COMPOSE["services"]["server"]["networks"] == ["inside"]
    assert "ports" not in COMPOSE["services"]["server"]


def test_the_proxy_is_started_again_with_the_server_whose_address_it_looks_up_once() -> None:
    assert COMPOSE["services"]["nginx"]["depends_on"] == {"server": {"condition": "service_healthy", "restart": True}}
    environments = {where: given["BERT_HTTP_UPSTREAM"] for where, given in ENVIRONMENTS.items()}
    assert environments == {"compose": "server:8000", "Kubernetes": "127.0.0.1:8000"}  # in a pod there is nothing to look up


def test_a_service_is_given_the_time_to_answer_what_it_has() -> None:
    grace = {name: int(COMPOSE["services"][name].get("stop_grace_period", "10s")[:-1]) for name in ("server", "nginx")}
    assert grace["server"] > DRAIN_TIMEOUT_S + 10  # five seconds more for the server's end, and five for its stubs'
    assert grace["nginx"] > int(COMPOSE["services"]["nginx"]["environment"]["BERT_READ_TIMEOUT_S"])


def test_no_secret_is_in_a_file_of_ours() -> None:
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())
    ignored = (DOCKER.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/docker/secrets/" in ignored
    environment = COMPOSE["services"]["grafana"]["environment"]
    assert [key for key in environment if "PASSWORD" in key] == ["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    assert [name for name in MANIFESTS if " Secret " in name] == []


def kubernetes_environment() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container("nginx")["env"]}


ENVIRONMENTS = {"compose": COMPOSE["services"]["nginx"]["environment"], "Kubernetes": kubernetes_environment()}


@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_the_template_is_filled_in_wholly_and_with_the_same_limits(where: str) -> None:
    given = ENVIRONMENTS[where]
    assert set(given) - {"NGINX_ENVSUBST_OUTPUT_DIR"} == placeholders(TEMPLATE.read_text(encoding="utf-8"))
    assert given["BERT_BODY_LIMIT"] == str(LARGEST_BODY)
    assert given["BERT_IN_FLIGHT"] == str(MAX_QUEUE_SIZE)
    assert "ssl_verify_client on" in given["BERT_TLS"]
    assert given["BERT_HTTP_LISTEN"].endswith(" ssl")
    assert given["BERT_GRPC_LISTEN"].endswith(" ssl")


def substituted(where: str, folder: Path) -> dict[str, str]:
    """The values, with this machine's paths and addresses in the place of the container's."""
    authority = Authority(folder, "authority")
    own = authority.issue("server")
    files = {"cert": own.certificate, "key": own.key, "client_ca": authority.path}
    files |= {"tls.crt": own.certificate, "tls.key": own.key, "ca.crt": authority.path}
    values = {
        key: value.replace("${RATE:-1000}", "1000") for key, value in ENVIRONMENTS[where].items() if key.startswith("BERT_")
    }
    for prefix in ("/run/secrets/tls_", "/run/secrets/", "/tls/"):
        for name, path in files.items():
            values["BERT_TLS"] = values["BERT_TLS"].replace(f"{prefix}{name};", f"{path};")
    upstreams = {key: value.replace("server:", "127.0.0.1:") for key, value in values.items() if key.endswith("UPSTREAM")}
    return values | upstreams | {"BERT_FOLDER": str(folder)}


@needs_nginx
@pytest.mark.parametrize("where", ENVIRONMENTS)
def test_nginx_accepts_what_the_containers_give_it(where: str, tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text(render(TEMPLATE.read_text(encoding="utf-8"), substituted(where, tmp_path)), encoding="utf-8")
    command = [find_nginx(), "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, "test is successful" in done.stderr) == (0, True), done.stderr


@pytest.mark.skipif(shutil.which("envsubst") is None, reason="envsubst is not installed: apt-get install gettext-base")
def test_the_image_s_envsubst_fills_in_what_our_own_renderer_does(tmp_path: Path) -> None:
    values = substituted("compose", tmp_path)
    template = TEMPLATE.read_text(encoding="utf-8")
    # The image's start-up script gives envsubst the names of all variables that exist, as here.
    environment = {**values, "PATH": os.environ["PATH"], "HOME": "/", "HOSTNAME": "nginx", "NGINX_VERSION": "1.28.0"}
    names = " ".join(f"${{{name}}}" for name in environment)
    done = subprocess.run(["envsubst", names], input=template, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == render(template, values)
