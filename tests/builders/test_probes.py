"""The release's own expected answers: the checkpoint's, of short and long texts, with a bound that the engine earned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.probes import PROBE_COUNT, ROUNDING, make_probes
from contract.command import UsageError
from contract.files import write_json
from contract.probes import Probes, read_probes
from contract.tensors import MAX_TEXT_BYTES
from tests.tiny import tiny_texts
from training.batches import encode
from training.checkpoint import Checkpoint, load_checkpoint
from training.evaluation import compute_logits

PARITY = {"max_abs": 1e-6, "label_agreement": 1.0}
TEXTS = [text for text, _ in tiny_texts(100)]


def rows_of(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


ROWS = rows_of(*TEXTS)


@pytest.fixture(scope="module")
def checkpoint(merged: Path) -> Checkpoint:
    return load_checkpoint(merged)


def test_probes_are_texts_of_every_length_with_the_checkpoints_logits(checkpoint: Checkpoint) -> None:
    probes = make_probes(checkpoint, ROWS, PARITY)
    lengths = [len(text) for text in probes.texts]
    assert len(set(probes.texts)) == PROBE_COUNT
    assert (lengths[0], lengths[-1]) == (min(map(len, TEXTS)), max(map(len, TEXTS)))
    logits = compute_logits(checkpoint.model, encode(checkpoint.tokenizer, probes.texts, []), tokens_per_batch=16)
    assert np.abs(np.array(probes.logits) - logits.numpy()).max() < 1e-5
    assert probes.failures(logits.tolist()) == []


def test_texts_that_no_server_takes_are_no_probes(checkpoint: Checkpoint) -> None:
    probes = make_probes(checkpoint, rows_of("  ", "x" * (MAX_TEXT_BYTES + 1), "the cat", "the cat"), PARITY)
    assert probes.texts == ["the cat"]
    with pytest.raises(UsageError, match="none of the 2 held-out texts can be served"):
        make_probes(checkpoint, rows_of("  ", ""), PARITY)


def test_the_same_texts_are_chosen_in_every_build(checkpoint: Checkpoint) -> None:
    rows = rows_of("moss", "fern", "bird", "tree", "a cat")
    assert make_probes(checkpoint, rows, PARITY).texts == ["bird", "fern", "moss", "tree", "a cat"]


@pytest.mark.parametrize(("max_abs", "bound"), [(1e-6, ROUNDING), (0.2, 0.4)])
def test_the_bound_is_what_the_engine_earned(checkpoint: Checkpoint, max_abs: float, bound: float) -> None:
    probes = make_probes(checkpoint, ROWS, {"max_abs": max_abs, "label_agreement": 0.97})
    assert probes.bound == bound
    assert probes.agreement == pytest.approx(0.92)


def test_probes_survive_being_written_and_broken_ones_are_refused(tmp_path: Path) -> None:
    probes = Probes(texts=["a"], logits=[[0.0, 1.0]], bound=0.1, agreement=1.0)
    probes.write(tmp_path)
    assert read_probes(tmp_path) == probes
    for broken in ({}, {"texts": ["a"], "logits": [], "bound": 0.1, "agreement": 1.0}, ["a"]):
        write_json(tmp_path / "probes.json", broken)
        with pytest.raises(UsageError, match="build the release again"):
            read_probes(tmp_path)
