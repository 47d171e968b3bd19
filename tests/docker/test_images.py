"""The Dockerfiles and what they call, outside Docker: linted, their packages complete, their commands run."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tyro

from builders.build import Build
from serving.__main__ import Serve
from serving.state import ServerState
from tests.clients.sockets import closed_url
from tests.docker.files import COMPOSE, DOCKER, DOCKERFILES, GPU, MANIFESTS, ROOT, container, default_of, instruction

SERVER, BUILDER = DOCKERFILES
HADOLINT = Path(sys.executable).with_name("hadolint")


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HADOLINT), str(path)], capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = hadolint(dockerfile)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && pip install numpy\n", encoding="utf-8")
    done = hadolint(tmp_path / "Dockerfile")
    assert done.returncode == 1
    assert {"DL3007", "DL3013", "DL3003"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_nobody_is_root(dockerfile: Path) -> None:
    lines = dockerfile.read_text(encoding="utf-8").splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000:1000"]


def test_the_build_is_sent_what_is_copied_and_no_secret() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    everything, *sent = [line for line in lines if not line.startswith(("#", "**"))]
    assert everything == "*"
    copied = {word for each in DOCKERFILES for word in re.findall(r"^COPY (.*) \S+$", each.read_text(), re.M)}
    assert {line.removeprefix("!") for line in sent} == {word for words in copied for word in words.split()}


def installed(dockerfile: Path) -> set[str]:
    """Names of the packages that the Dockerfile installs."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8"))
    words = " ".join(re.findall(r"constraints\.txt\s+(.*?)(?:&&|$)", text, re.M)).split()
    return {re.sub(r"\[.*\]", "", word.strip("'")) for word in words}


def third_party(folders: set[str]) -> set[str]:
    """Packages that the modules import, those of our own that they import included."""
    providers = importlib.metadata.packages_distributions()
    waiting = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    seen, found = set(waiting), set()
    while waiting:
        for name in imports(waiting.pop()):
            own = ROOT / (name.replace(".", "/") + ".py")
            inits = [ROOT / name.split(".")[0] / "__init__.py"] if (ROOT / name.split(".")[0]).is_dir() else []
            fresh = {path for path in (own, *inits) if path.is_file()} - seen
            seen |= fresh
            waiting += fresh
            found |= {each for each in providers.get(name.split(".")[0], []) if not inits}
    return {name.lower().replace("_", "-") for name in found}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


COMES_ALONG = {"grpcio", "gevent", "geventhttpclient", "aiohttp"}
"""With tritonclient."""

LEFT_OUT = {"torch"}
"""Of engines that are compared and not served: the image would double in size."""


def test_the_server_s_image_has_what_its_modules_import() -> None:
    needed = third_party({"contract", "serving", "model_repository"})
    assert {"numpy", "tokenizers", "tritonclient"} <= needed
    missing = {name for name in needed if not name.startswith(("google", "opentelemetry"))} - COMES_ALONG - LEFT_OUT
    assert missing - installed(SERVER) == set()


def test_the_builder_s_image_has_what_this_project_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[\[=]", dependency)[0] for dependency in project["dependencies"]}
    assert needed - {"nvidia-pytriton", "locust"} - COMES_ALONG - installed(BUILDER) == set()  # a Triton; nothing loads it


COMMANDS = {
    "image": instruction(SERVER, "CMD"),
    "compose": COMPOSE["services"]["server"]["command"],
    "compose with a GPU": GPU["services"]["server"]["command"],
    "Kubernetes": container("server")["args"],
    "KServe": container("kserve-container", "inferenceservice InferenceService bert")["args"],
}


@pytest.mark.parametrize("where", COMMANDS)
def test_the_server_s_command_is_one_that_it_takes(where: str) -> None:
    options = tyro.cli(Serve, args=COMMANDS[where])
    assert instruction(SERVER, "ENTRYPOINT") == ["python3", "-m", "serving"]
    assert str(options.repository) == "/models/model_repository"
    assert options.engine == ("cpu" if where == "compose" else "tensorrt")
    assert str(options.log) == "/var/log/bert/server.log"  # the root is read-only


def test_the_builder_s_command_is_one_that_it_takes() -> None:
    assert instruction(BUILDER, "ENTRYPOINT") == ["python3", "-m", "builders.build"]
    documented = re.search(r"run --rm --volume \S+ builder (.*)$", (DOCKER / "compose.yaml").read_text(encoding="utf-8"), re.M)
    assert documented is not None
    assert tyro.cli(Build, args=documented[1].split()).output == Path("/releases/release")


def test_every_place_names_the_same_images() -> None:
    tag = default_of(SERVER, "TRITON_TAG")
    assert default_of(BUILDER, "TRITON_TAG") == tag
    compose = json.dumps(COMPOSE)
    assert set(re.findall(r"TRITON_TAG:-([^}]+)", compose)) == {tag}
    assert set(re.findall(r"TENSORRT_VERSION:-([^}]+)", compose)) == {default_of(BUILDER, "TENSORRT_VERSION")}
    assert set(re.findall(r"bert-on-triton/server:([\w.]+)", json.dumps(MANIFESTS))) == {tag}
    nginx = COMPOSE["services"]["nginx"]["image"]
    assert container("nginx")["image"] == nginx
    images = [service["image"] for service in COMPOSE["services"].values()]
    assert all(re.search(r":(?:v?\d|\$\{TRITON_TAG:-\d)", image) for image in images)


def healthcheck(url: str) -> subprocess.CompletedProcess[str]:
    """The image's own health check, asked of another address."""
    words = instruction(SERVER, "HEALTHCHECK")
    assert words == ["python3", "docker/healthcheck.py"]
    command = [sys.executable, "-I", words[1], "--url", f"http://{url}", "--timeout-s", "60"]  # -I: nothing but the library
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.server
def test_the_health_check_passes_when_a_text_is_classified(watched: ServerState) -> None:
    done = healthcheck(watched.http_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("first-")


def test_the_health_check_fails_where_nobody_listens() -> None:
    done = healthcheck(closed_url())
    assert (done.returncode, "does not classify" in done.stderr) == (1, True)


@contextmanager
def answering(status: int, body: Any) -> Iterator[str]:
    """A server that gives this one answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base's name
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, {"error": "stub is not healthy"}, "stub is not healthy"),  # while /v2/health/ready says 200
        (200, {"outputs": []}, "logits and release are needed"),
        (200, {"no": "outputs"}, "outputs"),
        (200, {"outputs": [{"name": "logits", "data": [1.0]}]}, "the answer holds logits"),
    ],
)
def test_the_health_check_fails_when_the_answer_is_none(status: int, body: Any, reason: str) -> None:
    with answering(status, body) as url:
        done = healthcheck(url)
    assert (done.returncode, reason in done.stderr) == (1, True), done


def test_the_health_check_passes_while_a_full_server_says_so() -> None:
    said = "bert_tokenizer: overloaded: the engine is 1240 ms behind, 1000 ms are allowed; try again later"
    with answering(503, {"error": said}) as url:
        done = healthcheck(url)
    assert (done.returncode, done.stderr) == (0, ""), done


def tensorrt_version(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "docker/tensorrt_version.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def test_an_image_without_the_wheel_s_tensorrt_is_refused() -> None:
    done = tensorrt_version("--expect", "99.1.2.3")
    assert (done.returncode, "no TensorRT 99 in this image" in done.stderr) == (1, True)


def test_an_image_with_another_tensorrt_is_refused() -> None:
    libraries = pytest.importorskip("tensorrt_rtx_libs", reason="no TensorRT library is installed")
    (library,) = Path(libraries.__file__).parent.glob("libtensorrt_rtx.so.*")
    done = tensorrt_version("--expect", "99.1.2.3", "--library", str(library))
    assert done.returncode == 1
    found = re.search(r"the image holds TensorRT ([\d.]+), and not 99\.1\.2\.3", done.stderr)
    assert found is not None, done.stderr
    assert tensorrt_version("--expect", found[1], "--library", str(library)).stdout.strip() == f"TensorRT {found[1]}"
