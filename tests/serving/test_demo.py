"""The whole demo on tiny data: every documented command, in order, on the real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.server
@pytest.mark.timeout(900)  # half a minute on a machine of its own
def test_the_demo_goes_from_a_csv_to_its_table(tmp_path: Path, tiny_base: Path, tiny_csv: Path) -> None:
    # In a folder of its own that sees the project as a clone does, so that nothing lands in the real build folder.
    for name in ("training", "builders", "serving", "clients", "loadtests", "demo", "contract", "model_repository"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "demo", "--dataset", "csv", "--data", tiny_csv, "--text", "sentence", "--label", "kind"]
    done = subprocess.run(
        [*map(str, command), "--base", str(tiny_base), "--max-length", "16", "--epochs", "1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    work = tmp_path / "build" / "demo" / "csv-1"
    measured = json.loads((work / "measurements.json").read_text())
    assert measured["parity"]["failures"] == []
    assert measured["certificate"]["passed"] is True
    assert measured["load"]["failures"] == 0
    assert measured["engine_texts"] >= measured["engine_executions"] > 0
    assert "| served against checkpoint" in done.stdout
    for shown in ("training.finetune", "training.merge", "builders.build", "serving.releases publish", "clients.classify"):
        assert f"$ python -m {shown}" in done.stdout
    assert f"python -m serving --repository {work.relative_to(tmp_path)}/model_repository" in done.stdout
    assert not (work / "model_repository" / ".server.json").exists()


def test_a_failing_step_ends_the_demo_with_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "--dataset", "csv", "--data", "absent.csv", "--text", "a", "--label", "b"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "the data file absent.csv does not exist" in done.stderr
    assert "training.merge" not in done.stdout
