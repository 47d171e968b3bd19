"""`loadtests.latency`: what is measured, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clients import Classifier, TimedOut
from contract.command import Failure, UsageError
from contract.files import write_json_lines
from loadtests.latency import Latency, main, measure_latency
from tests.clients.memory import MemoryTransport
from tests.clients.sockets import closed_url

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["a", "bb", "ccc", "木"]  # 1, 2, 3 and 3 bytes


@pytest.mark.parametrize(("requests", "warmup"), [(19, 0), (0, 0), (-5, 0), (20, -1)])
def test_too_few_requests_are_refused(requests: int, warmup: int) -> None:
    said = rf"--requests is {requests} \(at least 20\), --warmup is {warmup} \(at least 0\)"
    with pytest.raises(UsageError, match=said):
        Latency(texts=Path("texts.jsonl"), requests=requests, warmup=warmup)


def test_the_least_that_is_allowed_is_accepted() -> None:
    options = Latency(texts=Path("texts.jsonl"), requests=20, warmup=0)
    assert (options.requests, options.warmup) == (20, 0)


@pytest.mark.parametrize("warmup", [0, 3])
def test_every_request_holds_one_text_and_warm_up_is_sent_but_not_measured(warmup: int) -> None:
    transport = MemoryTransport()
    result = measure_latency(Classifier(transport), TEXTS, protocol="grpc", requests=20, warmup=warmup)
    sent = [text.decode() for (text,) in transport.requests]
    assert len(sent) == 20 + warmup
    assert sent[warmup:] == TEXTS * 5
    assert (result.requests, result.protocol) == (20, "grpc")
    assert result.mean_text_bytes == (1 + 2 + 3 + 3) / 4


def test_the_percentiles_rise_and_the_mean_lies_between(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(tick for number in range(1, 101) for tick in (1000.0, 1000.0 + number / 1000))  # 1 to 100 ms
    monkeypatch.setattr("loadtests.latency.time.perf_counter", lambda: next(ticks))
    result = measure_latency(Classifier(MemoryTransport()), TEXTS, protocol="http", requests=100, warmup=0)
    assert (result.p50_ms, result.p95_ms, result.p99_ms) == pytest.approx((50.5, 95.05, 99.01))
    assert (result.mean_ms, result.max_ms) == pytest.approx((50.5, 100))


def test_a_failed_request_ends_the_measurement() -> None:
    classifier = Classifier(MemoryTransport(error=TimedOut("late"), error_at=7))
    with pytest.raises(TimedOut):
        measure_latency(classifier, TEXTS, protocol="grpc", requests=20, warmup=0)


def test_without_a_server_the_command_fails_and_writes_nothing(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "texts.jsonl", [{"text": "a"}])
    url = closed_url()
    with pytest.raises(Failure, match=f"Unavailable: {url}"):
        main(Latency(texts=tmp_path / "texts.jsonl", url=url, output=tmp_path / "latency.json"))
    assert not (tmp_path / "latency.json").exists()


def test_the_command_ends_with_2_and_names_a_missing_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.latency", "--texts", str(tmp_path / "absent.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot read {tmp_path / 'absent.jsonl'}")
