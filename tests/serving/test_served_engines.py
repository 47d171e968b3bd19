"""OpenVINO's engine in the real server: the checkpoint's answers, and the metrics of what was computed."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from builders.build import Build, build
from clients import connect
from serving.state import ServerState
from tests.served import deployed, serving, wait_until
from training.checkpoint import load_checkpoint, read_heldout
from training.evaluation import compute_logits

pytestmark = pytest.mark.server
TEXTS = 20


def metric(text: str, name: str) -> float:
    """The value of an engine's counter."""
    (value,) = re.findall(rf'^{name}{{[^}}]*model="bert_engine"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return float(value)


def read_metrics(state: ServerState) -> str:
    """What Prometheus would read."""
    with urllib.request.urlopen(f"http://{state.metrics_url}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def test_openvino_serves_the_checkpoints_answers_and_counts_them(merged: Path, tmp_path: Path) -> None:
    build(Build(checkpoint=merged, output=tmp_path / "release", engine="openvino", repository=tmp_path / "rendered"))
    checkpoint = load_checkpoint(merged)
    rows = [row for row, _ in zip(read_heldout(merged), range(TEXTS), strict=False)]
    encoded = checkpoint.encode(rows)
    wanted = compute_logits(checkpoint.model, encoded, tokens_per_batch=512).numpy()
    with serving(deployed(tmp_path, tmp_path / "release")) as state:
        with connect(state.grpc_url) as classifier:
            logits = classifier.logits([row["text"] for row in rows])
            told = metric(read_metrics(state), "bert_engine_rows_total")

            def counted() -> bool:
                """The engine reports at most twice a second, with a request; its next report holds the texts."""
                classifier.logits([rows[0]["text"]])
                return metric(read_metrics(state), "bert_engine_rows_total") > told

            assert wait_until(counted)
        text = read_metrics(state)
    np.testing.assert_allclose(logits, wanted, atol=1e-4, rtol=0)
    assert metric(text, "bert_engine_rows_total") >= TEXTS
    assert metric(text, "bert_engine_tokens_total") >= sum(encoded.lengths)
    assert metric(text, "bert_engine_calls_total") >= 1
    assert metric(text, "bert_engine_seconds_total") > 0
    assert metric(text, "bert_engine_refused_total") == 0
