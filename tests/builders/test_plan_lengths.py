"""`python -m builders.plan_lengths`, in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders.plan_lengths import PlanLengths, plan_lengths, time_model
from contract.command import UsageError
from contract.files import write_json
from tests.tiny import tiny_config, tiny_texts


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text, _ in tiny_texts(60)), encoding="utf-8")
    return path


def plan(texts: Path, base: Path, tmp_path: Path, **options: Any) -> Any:
    output = tmp_path / "lengths.json"
    given: dict[str, Any] = {"max_length": 20, "buckets": 3, "multiple": 4, "output": output}
    plan_lengths(PlanLengths(texts=texts, tokenizer=str(base), **(given | options)))
    return json.loads(output.read_text())


@pytest.mark.parametrize("cost", ["linear", "measured"])
def test_a_plan_is_printed_and_written(
    cost: str, texts: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = plan(texts, tiny_base, tmp_path, cost=cost)
    assert record["lengths"][-1] == 20
    assert len(record["profiles"]) == len(record["lengths"]) <= 3
    assert 0 < record["padding_waste"] < 0.5
    printed = capsys.readouterr().out
    assert "60 texts" in printed
    assert f"one engine with {len(record['lengths'])} profiles" in printed
    assert printed.index("this plan") < printed.index("one length") < printed.index("contract")
    assert ("T^2 ms" in printed) is (cost == "measured")


def test_costs_of_another_machine_are_taken_from_a_table(texts: Path, tiny_base: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    write_json(table, {"4": 1.0, "8": 2.0, "12": 3.0, "20": 5.0})  # linear
    by_table = plan(texts, tiny_base, tmp_path, table=table)
    assert by_table["lengths"] == plan(texts, tiny_base, tmp_path, cost="linear")["lengths"]


def test_a_model_is_timed_at_every_length() -> None:
    assert {tokens: seconds > 0 for tokens, seconds in time_model(tiny_config(), [4, 8]).items()} == {4: True, 8: True}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("\n \n", {}, "holds no texts"),
        ("a cat\n", {"max_length": 41}, "--max-length is 41"),
        ("a cat\n", {"table": "table.json"}, "no cost table"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    content: str, options: dict[str, Any], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(content, encoding="utf-8")
    (tmp_path / "table.json").write_text("[1, 2]")
    given = {key: tmp_path / value if key == "table" else value for key, value in options.items()}
    with pytest.raises(UsageError, match=message):
        plan(path, tiny_base, tmp_path, **given)
    assert not (tmp_path / "lengths.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 2}, "--max-length is 2"),
        ({"buckets": 0}, "--buckets is 0"),
        ({"multiple": 0}, "--multiple is 0"),
        ({"best_batch": 65}, "--best-batch is 65"),
        ({"table": Path("t.json"), "cost": "linear"}, "--table holds measured costs"),
    ],
)
def test_wrong_options_name_the_flag_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PlanLengths(texts=Path("texts.txt"), **options)
