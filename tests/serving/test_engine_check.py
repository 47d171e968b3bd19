"""`tests.serving.engine_check` on an engine that runs here, and what it says where TensorRT cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract.command import UsageError
from contract.files import read_json
from tests.serving.engine_check import EngineCheck, main, table


@pytest.mark.server
@pytest.mark.timeout(600)
def test_every_precision_is_built_served_and_swapped(merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = EngineCheck(
        checkpoint=merged,
        engine="openvino",
        precisions=("fp32", "int8"),
        work=tmp_path / "work",
        seconds=1.5,
        output=tmp_path / "found.json",
    )
    main(options)
    found = read_json(tmp_path / "found.json")
    assert [row["precision"] for row in found["engines"]] == ["fp32", "int8"]
    assert found["engines"][0]["logits_off"] < found["engines"][1]["logits_off"] <= found["engines"][1]["logits_bound"]
    assert all(row["p50_ms"] > 0 and row["texts_per_s"] > 0 and row["engine_mb"] > 0 for row in found["engines"])
    assert (found["swaps"], found["failed"], found["mixed"], found["wrong"]) == (3, 0, 0, [])
    assert found["requests"] > 10
    said = capsys.readouterr().out
    assert table(found) in said and said.count("wrote release") == 2


def test_without_tensorrt_it_says_what_to_run(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match="run this inside the image that serves"):
        main(EngineCheck(checkpoint=merged, work=tmp_path / "work"))
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").glob("tensorrt-*"))


def test_one_precision_cannot_be_swapped() -> None:
    with pytest.raises(UsageError, match="--precisions is fp16; at least two"):
        EngineCheck(checkpoint=Path("merged"), precisions=("fp16",))
