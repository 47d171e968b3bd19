"""`python -m clients.score` that failed or was killed goes on where it was, and never with something else."""

from __future__ import annotations

import gzip
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clients import Unavailable
from clients.parts import parts_of
from clients.score import score
from contract.command import Failure, UsageError
from tests.clients.scored import Serve, label_of, options_of, parquet_rows, read_csv, write_csv
from tests.served import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("target", ["out.csv", "out.parquet"])
def test_a_run_that_failed_goes_on_where_it_was(serve: Serve, tmp_path: Path, target: str) -> None:
    rows = [[str(number), f"text {number}"] for number in range(95)]
    write_csv(tmp_path / "in.csv", rows)
    serve(error=Unavailable("host:1: gone"), error_at=6)
    sizes: dict[str, Any] = {"part_rows": 10, "batch": 10, "in_flight": 1}
    with pytest.raises(Failure, match=r"Unavailable: host:1: gone .*go on with --resume"):
        score(options_of(tmp_path, target=target, **sizes))
    finished = len(list((tmp_path / f"{target}.parts").glob("part-*")))
    assert 1 <= finished <= 6
    with pytest.raises(UsageError, match="holds an unfinished run; --resume goes on with it"):
        score(options_of(tmp_path, target=target, **sizes))
    transport = serve()
    summary = score(options_of(tmp_path, target=target, resume=True, **sizes))
    assert summary.rows == 95 - 10 * finished
    assert len(transport.inner.requests) == 1 + 10 - finished  # one asks which features are read
    write_csv(tmp_path / "again.csv", rows)
    score(options_of(tmp_path, "again.csv", f"whole_{target}", **sizes))
    if target == "out.csv":
        assert (tmp_path / target).read_bytes() == (tmp_path / f"whole_{target}").read_bytes()
    else:
        assert parquet_rows(tmp_path / target) == parquet_rows(tmp_path / f"whole_{target}")


KILLED = """
import asyncio, sys
from pathlib import Path
import clients.score
from clients import AsyncClassifier
from tests.clients.async_memory import AsyncMemoryTransport

class Hanging(AsyncMemoryTransport):
    async def infer(self, texts, **options):
        if len(self.inner.requests) >= 5:
            await asyncio.Event().wait()
        return await super().infer(texts, **options)

clients.score.connect_async = lambda url, protocol, model, tls, **rest: AsyncClassifier(Hanging(), **rest)
folder = Path(sys.argv[1])
clients.score.score(clients.score.Score(
    input=folder / "in.csv", output=folder / "out.csv", text_column="text", part_rows=10, batch=10, in_flight=1))
"""


def test_a_killed_run_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", [[str(number), f"text {number}"] for number in range(95)])
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    try:
        assert wait_until((tmp_path / "out.csv.parts" / "part-00000003.csv").exists, seconds=120)
        with pytest.raises(UsageError, match=r"another process is at work in .*out\.csv\.parts"):
            score(options_of(tmp_path, batch=10, resume=True))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    (tmp_path / "out.csv.parts" / ".part-00000009.csv.half").write_text("half a part, as a kill leaves it")
    transport = serve()
    score(options_of(tmp_path, batch=10, resume=True))
    assert len(transport.inner.requests) <= 1 + 10 - 4
    found = read_csv(tmp_path / "out.csv")
    assert [row["id"] for row in found] == [str(number) for number in range(95)]
    assert [row["label"] for row in found] == [label_of(f"text {number}") for number in range(95)]
    assert not (tmp_path / "out.csv.parts").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"part_rows": 11}, "part_rows was 10 and is 11"),
        ({"model": "bert_candidate"}, 'model was "bert_classifier" and is "bert_candidate"'),
        ({"keep": ("id",)}, r'columns was \["id", "text"\] and is \["id"\]'),
        ({"prefix": "new_"}, 'prefix was "" and is "new_"'),
    ],
)
def test_a_run_does_not_go_on_with_other_options(serve: Serve, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_csv(tmp_path / "in.csv", [["0", "a"]])
    serve(error=Unavailable("gone"))
    with pytest.raises(Failure):
        score(options_of(tmp_path))
    with pytest.raises(UsageError, match=f"was begun differently: .*{said}"):
        score(options_of(tmp_path, resume=True, **change))


def test_a_run_does_not_go_on_with_another_input(serve: Serve, tmp_path: Path) -> None:
    write_csv(tmp_path / "in.csv", [["0", "a"]])
    serve(error=Unavailable("gone"))
    with pytest.raises(Failure):
        score(options_of(tmp_path))
    write_csv(tmp_path / "in.csv", [["0", "a"], ["1", "b"]])
    with pytest.raises(UsageError, match="input_bytes was 14 and is 19"):
        score(options_of(tmp_path, resume=True))


def test_a_cut_gzip_is_a_failure_that_keeps_what_is_finished(serve: Serve, tmp_path: Path) -> None:
    draw = random.Random(3)
    write_csv(tmp_path / "whole.csv", [[str(number), str(draw.random())] for number in range(5000)])
    packed = gzip.compress((tmp_path / "whole.csv").read_bytes())
    (tmp_path / "in.csv.gz").write_bytes(packed[: len(packed) // 2])
    serve()
    with pytest.raises(Failure, match="what is finished is kept"):
        score(options_of(tmp_path, "in.csv.gz", part_rows=100))
    assert (tmp_path / "out.csv.parts" / "part-00000000.csv").exists()
    assert not (tmp_path / "out.csv").exists()


def test_a_part_counts_only_when_all_before_it_are_there(tmp_path: Path) -> None:
    manifest = {"a": 1}
    with parts_of(tmp_path / "out.csv", manifest, resume=False) as parts:
        for number in (0, 1, 3):
            parts.path(number).touch()
    with parts_of(tmp_path / "out.csv", manifest, resume=True) as parts:
        assert parts.done == 2
        assert parts.next_path().name == "part-00000002.csv"
