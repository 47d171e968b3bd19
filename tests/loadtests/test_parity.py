"""`loadtests.parity`: each way in which served answers can be wrong is a failure of its own."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure, UsageError
from contract.files import write_json_lines
from loadtests.parity import CONCURRENT_BOUND, LOGIT_BOUND, ParityOptions, ServedParity, main
from tests.clients.sockets import closed_url

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")
ROW = {"text": "a", "label": "x", "logits": [0.0, 1.0], "truncated": False}
GOOD = ServedParity(
    texts=10,
    labels_equal={"grpc": 10, "http": 10},
    flags_equal={"grpc": 10, "http": 10},
    max_logit_difference={"grpc": LOGIT_BOUND, "http": 0.0},
    grpc_http_one_at_a_time=0.0,
    grpc_http_concurrent=CONCURRENT_BOUND,
    concurrency=8,
    releases=["tiny-0"],
)


def test_answers_within_every_bound_have_no_failures() -> None:
    assert GOOD.failures == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels_equal": {"grpc": 9, "http": 10}}, "grpc: 9 of 10 labels are the checkpoint's"),
        ({"labels_equal": {"grpc": 10, "http": 0}}, "http: 0 of 10 labels are the checkpoint's"),
        ({"labels_equal": {"grpc": 11, "http": 10}}, "grpc: 11 of 10 labels are the checkpoint's"),
        ({"flags_equal": {"grpc": 10, "http": 9}}, "http: 9 of 10 truncation flags agree"),
        ({"max_logit_difference": {"grpc": 0.0011, "http": 0.0}}, "grpc: logits differ by up to 0.0011, allowed 0.001"),
        ({"max_logit_difference": {"grpc": 0.0, "http": NAN}}, "http: logits differ by up to nan, allowed 0.001"),
        ({"grpc_http_one_at_a_time": 1e-9}, "one at a time, gRPC and HTTP differ by 1e-09, wanted 0"),
        ({"grpc_http_one_at_a_time": NAN}, "one at a time, gRPC and HTTP differ by nan, wanted 0"),
        ({"grpc_http_concurrent": 2e-5}, "under load, gRPC and HTTP differ by 2e-05, allowed 1e-05"),
        ({"grpc_http_concurrent": NAN}, "under load, gRPC and HTTP differ by nan, allowed 1e-05"),
    ],
)
def test_each_deviation_is_one_failure(change: dict[str, Any], said: str) -> None:
    assert dataclasses.replace(GOOD, **change).failures == [said]


def test_all_failures_are_told_at_once() -> None:
    wrong = ServedParity(
        texts=10,
        labels_equal={"grpc": 1, "http": 2},
        flags_equal={"grpc": 3, "http": 4},
        max_logit_difference={"grpc": 5.0, "http": 6.0},
        grpc_http_one_at_a_time=7.0,
        grpc_http_concurrent=8.0,
        concurrency=8,
        releases=[],
    )
    assert len(wrong.failures) == 8


@pytest.mark.parametrize("concurrency", [1, 0, -1])
def test_fewer_than_two_requests_in_flight_are_refused(concurrency: int) -> None:
    with pytest.raises(UsageError, match=f"--concurrency is {concurrency}; it must be at least 2"):
        ParityOptions(predictions=Path("p.jsonl"), concurrency=concurrency)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name != key}


@pytest.mark.parametrize(
    "rows", [[], [{"text": "a"}], *([ROW, without(key)] for key in ROW), [ROW | {"extra": 1}], [["text"]], ["text"], [3]]
)
def test_a_file_that_is_none_of_training_predict_is_refused(tmp_path: Path, rows: list[Any]) -> None:
    write_json_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(UsageError, match=r"p\.jsonl must hold the lines that python -m training\.predict writes"):
        main(ParityOptions(predictions=tmp_path / "p.jsonl"))


def test_without_a_server_it_fails_and_writes_nothing(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "p.jsonl", [ROW])
    options = ParityOptions(
        predictions=tmp_path / "p.jsonl", grpc_url=closed_url(), http_url=closed_url(), output=tmp_path / "parity.json"
    )
    with pytest.raises(Failure, match=f"Unavailable: {options.grpc_url}"):
        main(options)
    assert not (tmp_path / "parity.json").exists()


def test_the_command_ends_with_2_and_names_a_missing_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.parity", str(tmp_path / "absent.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot read {tmp_path / 'absent.jsonl'}")
