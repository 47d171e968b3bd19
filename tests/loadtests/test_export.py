"""`loadtests.export`: the file and the command that perf_analyzer gets."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from contract.command import UsageError
from contract.files import read_json, write_json, write_json_lines
from loadtests.export import Export, main


def scenario(folder: Path, load: str) -> Path:
    write_json_lines(folder / "t.jsonl", [{"text": "naïve 木"}, {"text": 'a "quoted" one'}])
    path = folder / "s.toml"
    path.write_text(f'texts = "{folder}/t.jsonl"\nduration_s = 20\n[load]\n{load}\n', encoding="utf-8")
    return path


def test_an_open_load_is_a_request_rate_with_its_distribution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Export(scenario=scenario(tmp_path, 'kind = "open"\nrate = 40'), output=tmp_path / "data.json", url="10.0.0.1:8001"))
    words = shlex.split(capsys.readouterr().out)
    pairs = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "perf_analyzer"
    assert (pairs["-m"], pairs["-u"], pairs["-b"]) == ("bert_classifier", "10.0.0.1:8001", "1")
    assert (pairs["--request-rate-range"], pairs["--request-distribution"]) == ("40", "poisson")
    assert (pairs["--shape"], pairs["--measurement-interval"]) == ("TEXT:1", "20000")
    data = read_json(Path(pairs["--input-data"]))["data"]
    assert sorted(entry["TEXT"]["content"][0] for entry in data) == ['a "quoted" one', "naïve 木"]
    assert all(entry["TEXT"]["shape"] == [1] for entry in data)


def test_a_closed_load_is_a_concurrency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Export(scenario=scenario(tmp_path, 'kind = "closed"\nusers = 8'), output=tmp_path / "data.json"))
    assert "--concurrency-range 8" in capsys.readouterr().out


def test_the_printed_command_reads_the_operators_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = {f"{name}_url": f"127.0.0.1:{port}" for name, port in (("grpc", 4001), ("http", 4000), ("metrics", 4002))}
    write_json(tmp_path / ".server.json", urls | {"control_token": "s3cret", "pid": 1})
    path = scenario(tmp_path, 'kind = "closed"\nusers = 8')
    main(Export(scenario=path, output=tmp_path / "data.json", repository=tmp_path))
    script = capsys.readouterr().out
    assert "s3cret" not in script
    done = subprocess.run(["sh", "-c", script.replace("perf_analyzer", "echo")], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("-H triton-grpc-protocol-triton-control:s3cret")
    assert " -u 127.0.0.1:4001 " in done.stdout


def test_a_shape_is_refused(tmp_path: Path) -> None:
    path = scenario(tmp_path, 'kind = "closed"\nusers = 8\nshape = "step"')
    with pytest.raises(UsageError, match=r"load\.shape is step; perf_analyzer knows constant load alone"):
        main(Export(scenario=path, output=tmp_path / "data.json"))
