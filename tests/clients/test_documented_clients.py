"""Every fenced block of docs/clients.md is run as it stands, against a real server on other ports."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.state import ServerState

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "clients.md").read_text(encoding="utf-8"), re.M | re.S)
LABEL = re.compile(r"animal|plant")


def test_the_document_has_its_blocks_and_their_languages_are_known() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    assert len(BLOCKS) == 9


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_documented_block_runs(server: ServerState, tmp_path: Path, number: int) -> None:
    language, text = BLOCKS[number]
    text = text.replace("127.0.0.1:8000", server.http_url).replace("127.0.0.1:8001", server.grpc_url)
    if "curl" in text and shutil.which("curl") is None:
        pytest.skip("no curl on the PATH")
    if "python -m" in text and server.http_url not in text:
        text = re.sub(r"(python -m clients\.\w+)", rf"\1 --url {server.grpc_url}", text)  # the default port is taken
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    words = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=280, env=variables)
    assert done.returncode == 0, (text, done.stderr)
    assert "Traceback" not in done.stderr
    if text.endswith("/ready\n"):
        return  # it answers by its exit code
    assert LABEL.search(done.stdout) or "first-" in done.stdout, done.stdout
    if "scored.csv" in text:
        rows = list(csv.DictReader((tmp_path / "scored.csv").read_text(encoding="utf-8").splitlines()))
        assert [(row["id"], bool(row["label"]), bool(row["error"])) for row in rows] == [
            ("1", True, False),
            ("2", False, True),
            ("3", True, False),
        ]
