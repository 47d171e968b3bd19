"""Locust and the commands that measure, as a user runs them, against the real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from contract.files import write_json_lines
from serving.state import ServerState
from tests.tiny import tiny_texts

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    write_json_lines(path, [{"text": text} for text, _ in tiny_texts(50)])
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)


def locust(user: str, host: str, texts: Path, *more: str | Path, seconds: int = 2) -> subprocess.CompletedProcess[str]:
    fixed = ("--headless", "--only-summary", "--users", "4", "--spawn-rate", "4", "--reset-stats", "--run-time", f"{seconds}s")
    return run("locust", "-f", "loadtests/locustfile.py", user, "--host", host, "--texts", texts, *fixed, *more)


@pytest.mark.parametrize(("user", "protocol"), [("GrpcUser", "grpc"), ("HttpUser", "http")])
def test_locust_classifies_over_either_protocol(
    server: ServerState, texts: Path, tmp_path: Path, user: str, protocol: str
) -> None:
    host = server.grpc_url if protocol == "grpc" else server.http_url
    for seconds in (2, 30):  # the longer run where the machine is too busy for the short one
        done = locust(user, host, texts, "--summary", tmp_path / "load.json", "--texts-per-request", "3", seconds=seconds)
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / "load.json").read_text())
        if summary["requests"] > 50:
            break
    assert summary["failures"] == 0
    assert summary["errors"] == {}
    assert summary["protocol"] == protocol
    assert summary["requests"] > 50  # gevent and gRPC agree: without init_gevent this is a handful
    assert summary["texts_per_s"] == pytest.approx(3 * summary["requests_per_s"])
    assert 0 < summary["p50_ms"] <= summary["p95_ms"] <= summary["p99_ms"]


def test_locust_without_a_server_fails_at_once_and_says_so(texts: Path) -> None:
    done = locust("HttpUser", "127.0.0.1:9", texts)
    assert done.returncode == 1
    assert "failed: Unavailable: 127.0.0.1:9" in done.stderr


def test_locust_without_texts_is_a_usage_error(server: ServerState, tmp_path: Path) -> None:
    done = locust("GrpcUser", server.grpc_url, tmp_path / "absent.jsonl")
    assert done.returncode == 2
    assert "absent.jsonl" in done.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_latency_command_writes_what_it_prints(server: ServerState, texts: Path, tmp_path: Path, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    where = ("--url", url, "--protocol", protocol, "--output", tmp_path / "latency.json", "--requests", "25")
    done = run("loadtests.latency", "--texts", texts, *where)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "latency.json").read_text())
    assert f"{protocol}: p50 {result['p50_ms']:.2f} ms" in done.stdout
    assert result["requests"] == 25


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_classify_command_prints_a_json_line_a_text(server: ServerState, protocol: str) -> None:
    url = server.grpc_url if protocol == "grpc" else server.http_url
    done = run("clients.classify", "the cat sleeps", "an oak tree", "--url", url, "--protocol", protocol)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["the cat sleeps", "an oak tree"]
    assert all(set(row) == {"text", "label", "score", "scores", "release", "truncated"} for row in rows)


def test_the_classify_command_refuses_an_empty_text(server: ServerState) -> None:
    done = run("clients.classify", "good", "", "--url", server.grpc_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "text 1 is empty" in done.stderr
