"""docs/deploying.md and docs/security.md say what the files say. Their `python -m` commands: tests/test_docs.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tyro

from builders.build import Build
from serving.events import events_path
from serving.proxy import LARGEST_BODY, Proxy
from tests.docker.files import COMPOSE, DOCKERFILES, MANIFESTS, ROOT, container, default_of, pod_spec

DOCS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("deploying", "security")}
LINES = [line.strip() for text in DOCS.values() for line in text.splitlines() if line.startswith("    ")]
PATH = re.compile(r"\b(?:docker|docs|tests|serving|builders|clients)/[\w./-]*\w|\b\w+\.md\b")


@pytest.mark.parametrize("name", DOCS)
def test_every_path_that_is_named_exists(name: str) -> None:
    made = {"docker/secrets", "docker/secrets/grafana_password", "docker/secrets/tls.crt", "docker/secrets/tls.key"}
    made |= {"docker/secrets/client_ca.crt"}  # by the operator
    paths = set(PATH.findall(DOCS[name])) - made
    assert len(paths) > 5
    assert {path for path in paths if not ((ROOT / path).exists() or (ROOT / "docs" / path).exists())} == set()


@pytest.mark.parametrize("line", [line for line in LINES if "python3 docker/" in line])
def test_every_script_has_the_options_that_are_named(line: str) -> None:
    script, *rest = shlex.split(line[line.index("docker/", line.index("python3 ")) :])
    source = (ROOT / script).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in rest if word.startswith("--"))


def test_what_compose_runs_in_its_containers_is_there() -> None:
    lines = [line for line in LINES if "docker compose" in line]
    services = {
        service for line in lines for service in re.findall(r"(?:run --rm(?: --volume \S+)?|exec|python3) (\w+)(?!/)\b", line)
    }
    assert services - {"server", "builder"} == set()
    (build,) = [line for line in lines if " builder " in line]
    assert tyro.cli(Build, args=shlex.split(build.partition(" builder ")[2])).checkpoint.as_posix() == "/merged"
    assert {word for line in lines for word in re.findall(r"-f (\S+)", line)} == {
        "docker/compose.yaml",
        "docker/compose.gpu.yaml",
    }
    assert {word for line in lines for word in re.findall(r"-m ([\w.]+)", line)} == {"serving.releases"}
    assert set(COMPOSE["services"]) >= {"server", "builder"}


def test_what_kubernetes_mounts_is_what_the_operator_is_told_to_make() -> None:
    made = {line.split()[3 + line.count(" generic ")]: line for line in LINES if line.startswith("kubectl create")}
    volumes = {volume["name"]: volume for volume in pod_spec(MANIFESTS["deployment Deployment bert"])["volumes"]}
    assert set(made) == {volumes["template"]["configMap"]["name"], volumes["tls"]["secret"]["secretName"]}
    assert f"`{volumes['published']['persistentVolumeClaim']['claimName']}`" in DOCS["deploying"]
    (tls,) = [variable["value"] for variable in container("nginx")["env"] if variable["name"] == "BERT_TLS"]
    assert set(re.findall(r"from-file=([\w.]+)=", made["bert-tls"])) == set(re.findall(r"/tls/([\w.]+)", tls))


def test_a_tag_is_chosen_for_every_command_and_not_for_the_build_alone() -> None:
    assert [line for line in LINES if re.search(r"TRITON_TAG=", line) and not line.startswith("export ")] == []


def test_the_page_says_where_log_and_events_of_the_containers_are() -> None:
    words = COMPOSE["services"]["server"]["command"]
    log = Path(words[words.index("--log") + 1])
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"`{path}`" in page for path in (log, events_path(log)))


def test_the_table_of_tags_and_the_limits_are_those_of_the_files() -> None:
    server, builder = DOCKERFILES
    row = f"| {default_of(server, 'TRITON_TAG')} (default) | "
    (found,) = [line for line in DOCS["deploying"].splitlines() if line.startswith(row)]
    assert found.endswith(f" | {default_of(builder, 'TENSORRT_VERSION')} |")
    limits = [LARGEST_BODY, Proxy().rate, Proxy().connections, Proxy().in_flight, Proxy().read_timeout_s]
    assert all(f"{limit:,}" in DOCS["security"] for limit in limits)
