"""`training.predict`: the checkpoint's answers, as it would give them alone, and every wrong call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from contract.command import UsageError
from training.checkpoint import load_checkpoint, read_heldout
from training.predict import Predict, predict


def answers(checkpoint: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """What the command writes."""
    predict(Predict(checkpoint=checkpoint, output=output, **options))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_the_heldout_texts_are_answered_in_order_as_transformers_answers_them(merged: Path, tmp_path: Path) -> None:
    found = answers(merged, tmp_path / "out.jsonl")
    texts = [row["text"] for row in read_heldout(merged)]
    assert [answer["text"] for answer in found] == texts
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    with torch.no_grad():
        expected = torch.cat([model(**tokenizer(text, truncation=True, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(torch.tensor([answer["logits"] for answer in found]), expected, atol=1e-5, rtol=0.0)
    assert [answer["label"] for answer in found] == [model.config.id2label[int(row.argmax())] for row in expected]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert [answer["truncated"] for answer in found] == [length > 16 for length in lengths]
    assert {answer["truncated"] for answer in found} == {True, False}


def test_the_answers_are_mostly_the_true_labels(merged: Path, tmp_path: Path) -> None:
    true = [row["label"] for row in read_heldout(merged)]
    found = [answer["label"] for answer in answers(merged, tmp_path / "out.jsonl")]
    assert sum(map(str.__eq__, true, found)) >= 0.9 * len(true)


def test_a_checkpoint_answers_alike_before_and_after_merging(finetuned: Path, merged: Path, tmp_path: Path) -> None:
    apart, plain = answers(finetuned, tmp_path / "apart.jsonl"), answers(merged, tmp_path / "plain.jsonl")
    logits = [torch.tensor([answer.pop("logits") for answer in found]) for found in (apart, plain)]
    assert apart == plain
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0.0)


def test_texts_of_a_file_are_answered_up_to_the_limit(merged: Path, tmp_path: Path) -> None:
    rows = [json.dumps({"text": text, "more": 1}) for text in ("a cat", "", "東京 🙂", "a tree")]
    path = write_lines(tmp_path / "in.jsonl", *rows)
    found = answers(merged, tmp_path / "new" / "out.jsonl", texts=path, limit=3)
    assert [answer["text"] for answer in found] == ["a cat", "", "東京 🙂"]
    assert all(answer.keys() == {"text", "label", "logits", "truncated"} for answer in found)
    assert {answer["label"] for answer in found} <= set(load_checkpoint(merged).labels)


def test_the_budget_of_a_batch_changes_answers_by_rounding_only(merged: Path, tmp_path: Path) -> None:
    alone, together = (answers(merged, tmp_path / f"{n}.jsonl", tokens_per_batch=n) for n in (1, 10_000))
    for one, other in zip(alone, together, strict=True):
        assert one["logits"] == pytest.approx(other["logits"], abs=1e-5)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], r'must hold at least one line, each a JSON object with a "text"'),
        (['{"text": "a"}', '{"body": "b"}'], r'each a JSON object with a "text"'),
        (['{"text": 3}'], r'each a JSON object with a "text"'),
        (['"a text"'], r'each a JSON object with a "text"'),
        (['{"text": "a"}', "not json"], r"in\.jsonl line 2 is not JSON"),
        (['{"text": "a"}', '{"text": "b \\ud800"}'], r"in\.jsonl line 2: the text holds half a surrogate pair"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused(merged: Path, tmp_path: Path, lines: list[str], named: str) -> None:
    path = write_lines(tmp_path / "in.jsonl", *lines)
    with pytest.raises(UsageError, match=named):
        predict(Predict(checkpoint=merged, output=tmp_path / "out.jsonl", texts=path))
    assert not (tmp_path / "out.jsonl").exists()


def test_missing_files_are_named(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*nowhere\.jsonl"):
        predict(Predict(checkpoint=merged, output=tmp_path / "out.jsonl", texts=tmp_path / "nowhere.jsonl"))
    with pytest.raises(UsageError, match="nowhere is not a checkpoint"):
        predict(Predict(checkpoint=tmp_path / "nowhere", output=tmp_path / "out.jsonl"))


@pytest.mark.parametrize(("option", "value"), [("limit", 0), ("limit", -1), ("tokens_per_batch", 0)])
def test_a_number_below_1_is_refused_by_the_name_of_its_option(tmp_path: Path, option: str, value: int) -> None:
    flag, wrong = option.replace("_", "-"), dict[str, Any]({option: value})
    with pytest.raises(UsageError, match=f"--{flag} is {value}; it must be at least 1"):
        Predict(checkpoint=tmp_path, output=tmp_path / "out.jsonl", **wrong)


def test_the_command_line_ends_with_code_2_for_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        [sys.executable, "-m", "training.predict", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path} is not a checkpoint: config.json is missing")
