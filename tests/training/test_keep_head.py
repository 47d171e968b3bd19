"""`--keep-head`: a classifier that was fine-tuned elsewhere, evaluated, taken over, trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from contract.command import UsageError
from contract.files import read_json, write_json
from tests.training.tiny_runs import options
from training.checkpoint import heldout_rows, load_checkpoint
from training.evaluation import compute_logits
from training.finetune import finetune
from training.merge import Merge
from training.merge import main as merge


@pytest.fixture(scope="module")
def elsewhere(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of a fine-tuned classifier: its own config and weights, its classes not in alphabetical order."""
    folder = tmp_path_factory.mktemp("elsewhere") / "theirs"
    model = BertForSequenceClassification.from_pretrained(merged)
    names = list(reversed(load_checkpoint(merged).labels))
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((merged / "tokenizer.json").read_bytes())
    return folder


def logits_of(folder: Path, rows: list[dict[str, Any]]) -> np.ndarray:  # type: ignore[type-arg]
    checkpoint = load_checkpoint(folder)
    return np.array(compute_logits(checkpoint.model, checkpoint.encode(rows), tokens_per_batch=512))


def test_a_classifier_from_elsewhere_is_taken_over_as_it_is(
    elsewhere: Path, merged: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    taken, output = tmp_path / "taken", tmp_path / "merged"
    finetune(options(taken, tiny_csv, elsewhere, strategy="none", keep_head=True))
    merge(Merge(checkpoint=taken, output=output))
    rows = heldout_rows(merged, 20)
    assert load_checkpoint(output).labels == list(reversed(load_checkpoint(merged).labels))
    np.testing.assert_allclose(logits_of(output, rows), logits_of(merged, rows)[:, ::-1], atol=1e-5)
    test, before = (read_json(folder / "run.json")["test"] for folder in (output, merged))
    assert test["accuracy"] == pytest.approx(before["accuracy"]) and test["accuracy"] > 0.8


def test_training_begins_with_its_head(elsewhere: Path, tiny_csv: Path, tmp_path: Path) -> None:
    run = {"epochs": 1, "learning_rate": 1e-6}  # next to nothing is learned
    finetune(options(tmp_path / "kept", tiny_csv, elsewhere, keep_head=True, **run))
    finetune(options(tmp_path / "drawn", tiny_csv, elsewhere, **run))
    kept, drawn = (load_checkpoint(tmp_path / name).model.classifier.weight.detach() for name in ("kept", "drawn"))
    theirs = BertForSequenceClassification.from_pretrained(elsewhere).classifier.weight.detach()
    torch.testing.assert_close(kept, theirs, atol=1e-4, rtol=0)
    assert (drawn - theirs).abs().max() > 0.01


def test_other_classes_and_a_base_without_a_head_are_refused(
    elsewhere: Path, tiny_base: Path, tiny_csv: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has no id2label"):
        finetune(options(tmp_path / "run", tiny_csv, tiny_base, keep_head=True))
    other = tmp_path / "other"
    other.mkdir()
    for path in elsewhere.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = read_json(other / "config.json")
    write_json(other / "config.json", config | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    with pytest.raises(
        UsageError, match=r"gives LABEL_0, LABEL_1, .* has animal, plant; write the data's labels into id2label"
    ):
        finetune(options(tmp_path / "run", tiny_csv, other, keep_head=True))
    with pytest.raises(UsageError, match="scratch has no use for"):
        options(tmp_path / "run", tiny_csv, elsewhere, strategy="scratch", keep_head=True)
