"""docs/deploying.md and docs/security.md name files that exist, and commands with options that exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from typing import Any

import pytest
import tyro

from builders.build import Build
from serving.__main__ import Serve
from serving.proxy import LARGEST_BODY, Proxy
from serving.shm import Shm
from tests.docker.files import COMPOSE, DOCKERFILES, ROOT, default_of
from tests.security.fuzz import Fuzz

DOCS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("deploying", "security")}
COMMANDS: dict[str, Any] = {"serving": Serve, "serving.proxy": Proxy, "serving.shm": Shm, "tests.security.fuzz": Fuzz}
LINES = [line.strip() for text in DOCS.values() for line in text.splitlines() if line.startswith("    ")]
PATH = re.compile(r"\b(?:docker|docs|tests|serving|builders|clients)/[\w./-]*\w|\b\w+\.md\b")


def options_of(options: Any) -> set[str]:
    """Flags of a command's dataclass, those of the dataclasses in it included."""
    found: set[str] = set()
    for field in dataclasses.fields(options):
        inner = field.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found |= options_of(inner)
        else:
            found.add("--" + field.name.replace("_", "-"))
    return found


@pytest.mark.parametrize("name", DOCS)
def test_every_path_that_is_named_exists(name: str) -> None:
    made = {"docker/secrets", "docker/secrets/grafana_password", "docker/secrets/tls.crt", "docker/secrets/tls.key"}
    made |= {"docker/secrets/client_ca.crt"}  # by the operator
    paths = set(PATH.findall(DOCS[name])) - made
    assert len(paths) > 5
    assert {path for path in paths if not ((ROOT / path).exists() or (ROOT / "docs" / path).exists())} == set()


def test_every_python_command_has_the_options_that_are_named() -> None:
    checked = 0
    for line in LINES:
        if match := re.match(r"python3? -m ([\w.]+)(.*)", line):
            module, rest = match[1], shlex.split(match[2])
            assert importlib.util.find_spec(module) is not None, line
            assert {word for word in rest if word.startswith("--")} <= options_of(COMMANDS[module]), line
            checked += 1
    assert checked >= 8


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python3 docker/")])
def test_every_script_has_the_options_that_are_named(line: str) -> None:
    script, *rest = shlex.split(line)[1:]
    source = (ROOT / script).read_text(encoding="utf-8")
    assert all(f'"{word}"' in source for word in rest if word.startswith("--"))


def test_what_compose_runs_in_its_containers_is_there() -> None:
    lines = [line for line in LINES if "docker compose" in line]
    services = {service for line in lines for service in re.findall(r"(?:run --rm|exec|python3) (\w+)", line)}
    assert services - {"server", "builder"} == set()
    (build,) = [line for line in lines if "run --rm builder" in line]
    assert tyro.cli(Build, args=shlex.split(build.partition(" builder ")[2])).checkpoint.as_posix() == "/work/merged"
    assert {word for line in lines for word in re.findall(r"-f (\S+)", line)} == {
        "docker/compose.yaml",
        "docker/compose.gpu.yaml",
    }
    assert {word for line in lines for word in re.findall(r"-m ([\w.]+)", line)} == {"serving.releases"}
    assert set(COMPOSE["services"]) >= {"server", "builder"}


def test_the_table_of_tags_and_the_limits_are_those_of_the_files() -> None:
    server, builder = DOCKERFILES
    row = f"| {default_of(server, 'TRITON_TAG')} (default) | "
    (found,) = [line for line in DOCS["deploying"].splitlines() if line.startswith(row)]
    assert found.endswith(f" | {default_of(builder, 'TENSORRT_VERSION')} |")
    limits = [LARGEST_BODY, Proxy().rate, Proxy().connections, Proxy().in_flight, Proxy().read_timeout_s]
    assert all(f"{limit:,}" in DOCS["security"] for limit in limits)
