"""`demo.table`: the table says what the file holds, and the README holds the table that the file renders to."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.table import markdown, rows

ROOT = Path(__file__).resolve().parents[2]
MEASUREMENTS = ROOT / "docs" / "measurements"


def latency(p50: float) -> dict[str, Any]:
    return {"p50_ms": p50, "p95_ms": p50 + 1.04, "p99_ms": p50 + 2.06}


def epoch(number: int, loss: float, rate: float) -> dict[str, Any]:
    return {"epoch": number, "seconds": 10.2, "samples_per_s": rate, "validation": {"loss": loss}}


MEASURED: dict[str, Any] = {
    "date": "2030-01-02",
    "seconds": 345.6,
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": 7.7, "python": "3.11.9"},
    "run": {
        "data": {
            "name": "reviews",
            "labels": ["bad", "good"],
            "parts": {"train": {"rows": 2500}, "validation": {"rows": 300}, "test": {"rows": 1200}},
        },
        "epochs": [epoch(1, 0.9, 50.0), epoch(2, 0.5, 61.25), epoch(3, 0.7, 70.0)],
        "test": {"accuracy": 0.91234, "loss": 0.43215, "precision": 0.9, "recall": 0.8, "f1": 0.84567},
    },
    "certificate": {"passed": True, "fp32": {"max_abs": 1.23e-6}},
    "manifest": {"parity": {"max_abs": 4.56e-7}},
    "parity": {
        "texts": 1000,
        "labels_equal": {"grpc": 1000, "http": 999},
        "max_logit_difference": {"grpc": 1e-7, "http": 2e-6},
        "grpc_http_one_at_a_time": 0.0,
        "grpc_http_concurrent": 3e-7,
        "concurrency": 8,
    },
    "latency_grpc": latency(5.0),
    "latency_http": latency(6.0),
    "load": {"users": 8, "protocol": "grpc", "texts_per_s": 123.45, "failures": 1, "requests": 4567},
    "engine_texts": 500,
    "engine_executions": 200,
}

EXPECTED = {
    "machine": "A CPU, 2 cores, 2030-01-02",
    "data": "reviews, 2 classes: 2,500 train, 300 validation, 1,200 test",
    "training": "31 s, 61.2 texts/s; epoch 2 of 3 kept",
    "test accuracy": "91.23% (loss 0.4321)",
    "test macro precision / recall / F1": "90.00% / 80.00% / 84.57%",
    "merge certificate": "passed, fp32 logits within 1.2e-06",
    "ONNX against checkpoint": "logits within 4.6e-07",
    "served against checkpoint": "999 of 1000 labels equal, logits within 2.0e-06",
    "gRPC against HTTP": "equal one at a time, within 3.0e-07 with 8 in flight",
    "latency, one in flight, gRPC": "p50 5.0 ms  p95 6.0 ms  p99 7.1 ms",
    "latency, one in flight, HTTP": "p50 6.0 ms  p95 7.0 ms  p99 8.1 ms",
    "throughput, 8 Locust users, grpc": "123.5 texts/s",
    "requests failed under that load": "1 of 4567",
    "texts per engine call under that load": "2.50",
    "whole demo, after the installs": "346 s",
}


def test_every_row_says_what_was_measured() -> None:
    assert dict(rows(MEASURED)) == EXPECTED


def test_a_certificate_that_fails_is_shown_as_failed() -> None:
    measured = copy.deepcopy(MEASURED)
    measured["certificate"]["passed"] = False
    assert dict(rows(measured))["merge certificate"].startswith("FAILED, ")


def test_the_worse_protocol_is_shown() -> None:
    measured = copy.deepcopy(MEASURED)
    measured["parity"]["labels_equal"] = {"grpc": 7, "http": 1000}
    measured["parity"]["max_logit_difference"] = {"grpc": 0.5, "http": 0.25}
    assert dict(rows(measured))["served against checkpoint"] == "7 of 1000 labels equal, logits within 5.0e-01"


def test_a_value_that_was_not_measured_is_an_error_and_no_blank() -> None:
    measured = copy.deepcopy(MEASURED)
    del measured["load"]["failures"]
    with pytest.raises(KeyError, match="failures"):
        rows(measured)


def test_the_markdown_is_aligned_and_holds_every_row() -> None:
    lines = markdown(MEASURED).split("\n")
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["measured", "result"]
    assert all(set(cell) == {"-"} for cell in cells[1])
    assert cells[2:] == [list(row) for row in EXPECTED.items()]


def test_the_command_prints_the_table_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "measurements.json").write_text(json.dumps(MEASURED))
    command = [sys.executable, "-m", "demo.table", str(tmp_path / "measurements.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, markdown(MEASURED) + "\n")


def wrong_tables(readme: str, folder: Path) -> list[str]:
    """What is wrong with the tables of a README: a file without its marker, a marker without its file, another table."""
    files = {path.name for path in folder.glob("demo-*.json")}
    found = re.findall(r"^<!-- table: docs/measurements/(demo-\S+) -->\n\n?((?:\|.*\n)*)", readme, re.MULTILINE)
    tables = dict(found)
    wrong = [f"{name}: no marker in the README" for name in sorted(files - set(tables))]
    wrong += [f"{name}: marked in the README, but no such file" for name in sorted(set(tables) - files)]
    for name in sorted(files & set(tables)):
        if tables[name] != markdown(json.loads((folder / name).read_text(encoding="utf-8"))) + "\n":
            wrong.append(f"{name}: the README's table is another; paste that of python -m demo.table docs/measurements/{name}")
    return wrong


def test_the_readme_holds_the_table_of_every_measurements_file() -> None:
    assert wrong_tables((ROOT / "README.md").read_text(encoding="utf-8"), MEASUREMENTS) == []


@pytest.mark.parametrize("gap", ["", "\n"])
def test_a_right_table_passes(tmp_path: Path, gap: str) -> None:
    (tmp_path / "demo-a.json").write_text(json.dumps(MEASURED))
    readme = f"# Title\n\n<!-- table: docs/measurements/demo-a.json -->\n{gap}{markdown(MEASURED)}\n\nmore\n"
    assert wrong_tables(readme, tmp_path) == []


MARKER = "<!-- table: docs/measurements/demo-a.json -->\n"


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        (markdown(MEASURED) + "\n", "no marker"),
        (MARKER, "is another"),
        (MARKER + markdown(MEASURED).replace("123.5", "999.9") + "\n", "is another"),
        (MARKER + markdown(MEASURED) + "\n| faster | than all |\n", "is another"),
        (MARKER + "some words\n" + markdown(MEASURED) + "\n", "is another"),
        (MARKER + markdown(MEASURED) + "\n" + MARKER.replace("demo-a", "demo-b"), "no such file"),
    ],
)
def test_a_table_that_is_not_the_files_is_found(tmp_path: Path, readme: str, said: str) -> None:
    (tmp_path / "demo-a.json").write_text(json.dumps(MEASURED))
    (problem,) = wrong_tables(readme, tmp_path)
    assert said in problem
