"""The commands `clients.classify` and `clients.score` against a real server, as a user calls them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clients import connect
from clients.score import Score, score
from contract.command import Failure
from serving.state import ServerState
from tests.served import wait_until
from tests.tiny import tiny_texts

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [text for text, _ in tiny_texts(200)]


def command(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | environment
    return subprocess.run(
        [sys.executable, "-m", *words],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=280,
        env=variables,
    )


def test_every_line_of_standard_input_is_answered_in_order(server: ServerState) -> None:
    done = command("clients.classify", "--url", server.grpc_url, "--retries", "3", stdin="\n".join(TEXTS))
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == TEXTS


def test_a_line_is_answered_while_the_next_is_still_being_written(server: ServerState) -> None:
    words = [sys.executable, "-m", "clients.classify", "--url", server.http_url, "--protocol", "http", "--table"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in TEXTS[:3]:
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            label, score, *_ = process.stdout.readline().split()
            assert label in {"animal", "plant"}
            assert score.endswith("%")
        process.stdin.close()
        assert process.wait(200) == 0


def write_input(path: Path, rows: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([number, "" if number == rows // 2 else TEXTS[number % len(TEXTS)]] for number in range(rows))


@pytest.fixture(scope="module")
def scored(server: ServerState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with in.csv, 1,000 rows with an empty text in the middle, and its scored out.csv."""
    folder = tmp_path_factory.mktemp("scored")
    write_input(folder / "in.csv", 1000)
    words = [str(folder / "in.csv"), str(folder / "out.csv"), "--text-column", "text"]
    done = command("clients.score", *words, "--url", server.grpc_url, "--part-rows", "100")
    assert done.returncode == 0, done.stderr
    assert "1000 rows scored" in done.stdout
    assert "1 without a label" in done.stdout
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_scored_file_holds_what_the_client_answers(server: ServerState, scored: Path) -> None:
    rows = read_rows(scored / "out.csv")
    with connect(server.grpc_url) as classifier:
        expected = classifier.classify([TEXTS[number % len(TEXTS)] for number in range(1000)])
    for number, (row, answer) in enumerate(zip(rows, expected, strict=True)):
        assert row["id"] == str(number)
        if number == 500:
            assert (row["label"], row["error"]) == ("", "the text is empty: there is nothing to classify")
            continue
        assert (row["text"], row["label"], row["release"]) == (answer.text, answer.label, answer.release)
        assert row["truncated"] == str(answer.truncated)
        assert float(row["score"]) == pytest.approx(answer.score, abs=1e-4)


def test_http_gives_the_same_file(server: ServerState, scored: Path) -> None:
    source, target = scored / "in.csv", scored / "http.csv"
    score(Score(input=source, output=target, text_column="text", url=server.http_url, protocol="http"))
    same(target, scored / "out.csv")


def same(path: Path, other: Path) -> None:
    """Rows agree, to what another batching does to the last digits of the score."""
    for row, expected in zip(read_rows(path), read_rows(other), strict=True):
        assert float(row.pop("score") or 0) == pytest.approx(float(expected.pop("score") or 0), abs=1e-4)
        assert row == expected


RAY_TAKES_ITS_TIME = {
    "RAY_worker_register_timeout_seconds": "250",
    "RAY_gcs_server_request_timeout_seconds": "250",
    "RAY_agent_register_timeout_ms": "250000",
}
"""For a machine on which a process takes half a minute to start."""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps its sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # a process of Ray's that is just ending may still write a log


def test_a_ray_job_finishes_what_a_plain_run_began_and_leaves_nothing_running(
    server: ServerState, scored: Path, ray_folder: Path
) -> None:
    """Nearly all of the time is the start of Ray and of its workers."""
    target = scored / "ray.csv"
    options = {"input": scored / "in.csv", "output": target, "text_column": "text", "part_rows": 100}
    with pytest.raises(Failure, match="row 500, counted from 0"):
        score(Score(url=server.grpc_url, strict=True, **options))  # type: ignore[arg-type]
    assert len(list((scored / "ray.csv.parts").glob("part-*"))) == 5
    words = [str(scored / "in.csv"), str(target), "--text-column", "text", "--part-rows", "100", "--url", server.grpc_url]
    done = command("clients.score", *words, "--resume", "--ray", "local", RAY_TMPDIR=str(ray_folder), **RAY_TAKES_ITS_TIME)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "500 rows scored" in done.stdout
    same(target, scored / "out.csv")
    assert wait_until(lambda: not processes_of(ray_folder), seconds=60), processes_of(ray_folder)


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder, as all of Ray's servers do."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if f"{folder}/" in line]


def test_without_ray_the_command_says_what_to_install(server: ServerState, scored: Path, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('No module named ray', name='ray')\n")
    words = [str(scored / "in.csv"), str(tmp_path / "out.csv"), "--text-column", "text", "--url", server.grpc_url]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = command("clients.score", *words, "--ray", "local", PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --ray needs Ray Data: pip install 'bert-on-triton[score]'")
