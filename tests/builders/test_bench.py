"""`builders.bench`: the arithmetic of its report by hand, and one small run of everything it times."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.bench import Bench, bench, measure_accuracy, padding_of, time_engines
from builders.bench_report import OURS, PLAIN, REFERENCE, markdown, summarise
from builders.ceilings import bert_operations, ceiling_calls
from builders.rivals import make_rivals, pad_rows
from builders.served import padding_share
from contract.command import UsageError
from contract.files import write_json
from training.bert_config import BertConfig
from training.checkpoint import heldout_rows, load_checkpoint
from training.evaluation import compute_logits

SAMPLES = {
    "1": {
        REFERENCE: [[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]],
        f"{PLAIN}onnxruntime int8": [[0.2, 0.2]] * 3,
        f"{PLAIN}openvino": [[0.1, 0.2]] * 3,
        f"{OURS}openvino int8": [[0.05, 0.05]] * 3,
        f"{OURS}onnxruntime fp32": [[0.3, 0.3]] * 3,
    }
}
BASE = {"batch": 8, "tokens": 128, "gigaoperations": 100.0, "ms": {f"{OURS}openvino int8": [100.0, 200.0, 300.0]}}
CEILINGS = {
    "fp32 torch": [500.0],
    "bf16 torch": [900.0],
    "int8 onnxruntime": [800.0, 700.0, 3000.0],
    "int8 openvino": [1000.0, 2000.0, 900.0],
}


def measured() -> dict[str, Any]:
    names = list(SAMPLES["1"])
    accuracy = {name: {"accuracy": 0.5, "flips": 0.01} for name in names}
    return {
        "data": "sentences",
        "texts": 2,
        "tokens": {"mean": 15.0, "least": 10, "greatest": 20},
        "rounds": 3,
        "machine": {"cpu": "a processor", "threads": 2},
        "accuracy_texts": 10,
        "padding": {"1": {"plain": 0.4, "ours": 0.01}},
        **summarise(SAMPLES, CEILINGS, accuracy, [10, 20], BASE),
    }


def test_speeds_are_those_of_all_texts_of_a_round_and_ratios_those_of_the_same_round() -> None:
    engine = measured()["engines"]["1"][f"{OURS}openvino int8"]
    assert engine["samples_per_s"]["median"] == pytest.approx(20)
    assert engine["tokens_per_s"]["median"] == pytest.approx(300)
    assert engine["batch_ms"] == pytest.approx({"p50": 50, "p95": 50, "p99": 50})
    assert engine["speedup"] == pytest.approx(10)


def test_the_goals_compare_our_best_with_the_reference_and_with_the_best_plain_runtime() -> None:
    goals = measured()["goals"]["1"]
    assert (goals["best"], goals["best_plain"]) == (f"{OURS}openvino int8", f"{PLAIN}openvino")
    assert goals["over_transformers_fp32"] == pytest.approx(10)
    assert goals["over_best_plain"] == pytest.approx(3)


def test_an_engine_of_berts_base_shape_is_held_against_the_ceiling_of_its_precision() -> None:
    engine = measured()["bert_base"]["engines"][f"{OURS}openvino int8"]
    assert engine["gflops"] == pytest.approx(500)  # 100 gigaoperations in 200 ms
    assert engine["of_ceiling"] == pytest.approx(0.5)


def test_the_table_says_all_of_it() -> None:
    said = markdown(measured())
    assert "2 held-out texts of sentences, 10 to 20 tokens, mean 15; 3 rounds in turn" in said
    assert f"| {OURS}openvino int8 | 20.0 (20.0 to 20.0) | 300 | 50.0 / 50.0 / 50.0 | 10.00x | 50.00% | 1.00% |" in said
    assert f"{OURS}openvino int8 is 10.00x transformers fp32 and 3.00x {PLAIN}openvino; padding is 1.0% of the tokens" in said
    assert "Ceilings of the same run, GFLOP/s: fp32 500 by torch, bf16 900 by torch, int8 1000 by openvino." in said
    assert "openvino int8 500 GFLOP/s (50% of its ceiling)" in said


def test_every_runtime_is_asked_for_the_products_that_its_engines_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.ceilings.SIZE", 64)
    calls = ceiling_calls()
    assert {"fp32 torch", "fp32 onnxruntime", "fp32 openvino", "int8 onnxruntime", "int8 openvino", "bf16 torch"} <= set(calls)
    for call in calls.values():
        call()


USED_TWICE = """
import gc, signal
from builders import ceilings
ceilings.SIZE = 64
first, second = ceilings.ceiling_calls(), ceilings.ceiling_calls()
del first
gc.collect()
del second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_is_no_crash_where_openvino_was_used_more_than_once() -> None:
    done = subprocess.run([sys.executable, "-c", USED_TWICE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_a_run_without_berts_base_shape_is_shown_without_it() -> None:
    values = copy.deepcopy(measured())
    del values["bert_base"]
    assert "BERT-base" not in markdown(values)


def test_the_operations_of_a_bert_are_those_of_its_products() -> None:
    config = BertConfig(num_hidden_layers=2, hidden_size=4, num_attention_heads=2, intermediate_size=6)
    products = [4 * 4] * 4 + [4 * 6] * 2
    full = 2 * 5 * sum(products) + 2 * (2 * 5 * 5 * 4)
    last = 2 * (sum(products) - 2 * 16) + 2 * 5 * 2 * 16 + 2 * (2 * 5 * 4)
    assert bert_operations(config, batch=3, tokens=5) == 3 * (full + last)


def test_every_engine_is_timed_once_a_round_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.bench.ceiling_calls", lambda: {"fp32 torch": lambda: None})
    ticks = itertools.count()
    rows = [np.zeros(3, np.int32)] * 33
    samples, ceilings = time_engines({"a": lambda rows: []}, rows, rounds=3, clock=lambda: float(next(ticks)), settle_s=0)
    assert samples["1"]["a"] == [[1.0] * 33] * 3
    assert samples["32"]["a"] == [[1.0, 1.0]] * 3
    assert len(ceilings["fp32 torch"]) == 3


def test_accuracy_counts_right_answers_and_those_unlike_the_first_engines() -> None:
    rows = [np.array([number], np.int32) for number in (0, 1, 1, 0)]
    right = {"a": lambda rows: [np.eye(2, dtype=np.float32)[row[0]] for row in rows]}
    constant = {"b": lambda rows: [np.array([1, 0], np.float32) for _ in rows]}
    found = measure_accuracy(right | constant, rows, [0, 1, 1, 1])
    assert found == {"a": {"accuracy": 0.75, "flips": 0.0}, "b": {"accuracy": 0.25, "flips": 0.5}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "pass a merged checkpoint and --output FILE, or --show FILE alone"),
        ({"checkpoint": Path("a")}, "pass a merged checkpoint and --output FILE"),
        ({"checkpoint": Path("a"), "output": Path("b"), "show": Path("c")}, "or --show FILE alone"),
        ({"checkpoint": Path("a"), "output": Path("b"), "rounds": 2}, "--rounds is 2; it must be at least 3"),
        ({"checkpoint": Path("a"), "output": Path("b"), "accuracy_texts": 0}, "--accuracy-texts is 0"),
    ],
    ids=["nothing", "no output", "both", "rounds", "texts"],
)
def test_a_wrong_call_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Bench(**options)


def test_a_run_is_shown_from_its_file_and_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "run.json", measured())
    bench(Bench(show=tmp_path / "run.json"))
    assert capsys.readouterr().out == markdown(measured()) + "\n"
    write_json(tmp_path / "other.json", {"ms": {}})
    with pytest.raises(UsageError, match=r"other\.json is not a file of this bench"):
        bench(Bench(show=tmp_path / "other.json"))


def test_texts_are_timed_and_judged_from_all_over_the_held_out_ones(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, judged, true = [], [], []

    def time_rows(engines: Any, rows: Any, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        timed.extend(rows)
        return {}, {}

    def judge_rows(engines: Any, rows: Any, labels: Any) -> dict[str, Any]:
        judged.extend(rows)
        true.extend(labels)
        return {}

    stand_ins = {"make_rivals": lambda *_: {}, "our_engines": lambda *_: {}, "summarise": lambda *_: {}, "markdown": str}
    for name, stand_in in (stand_ins | {"time_engines": time_rows, "measure_accuracy": judge_rows}).items():
        monkeypatch.setattr(f"builders.bench.{name}", stand_in)
    bench(Bench(checkpoint=merged, output=tmp_path / "a.json", texts=2, accuracy_texts=8, base_shapes=False))
    held = load_checkpoint(merged).encode_labelled(heldout_rows(merged, 8))
    assert [row.tolist() for row in judged] == held.ids
    assert true == held.labels
    assert [row.tolist() for row in timed] == [held.ids[0], held.ids[4]]


def test_a_run_that_cannot_be_written_was_printed(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins = {"make_rivals": lambda *_: {}, "our_engines": lambda *_: {}, "summarise": lambda *_: {}, "markdown": str}
    for name, stand_in in (stand_ins | {"time_engines": lambda *_, **__: ({}, {}), "measure_accuracy": lambda *_: {}}).items():
        monkeypatch.setattr(f"builders.bench.{name}", stand_in)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        bench(Bench(checkpoint=merged, output=tmp_path / "file" / "a" / "a.json", texts=2, base_shapes=False))
    assert "accuracy_texts" in capsys.readouterr().out


def test_a_checkpoint_that_was_not_merged_is_refused(finetuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no merge_certificate\.json: merge it first"):
        bench(Bench(checkpoint=finetuned, output=tmp_path / "a.json"))


def test_the_rivals_have_the_checkpoints_own_weights(merged: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(merged)
    encoded = checkpoint.encode([{"text": "the cat near a green tree"}, {"text": "fern"}, {"text": "a dog"}])
    wanted = compute_logits(checkpoint.model, encoded, tokens_per_batch=100).numpy()
    rows = [np.array(ids, np.int32) for ids in encoded.ids]
    rivals = make_rivals(merged, tmp_path)
    assert [name for name in rivals if name.startswith(PLAIN)] == [
        "plain onnxruntime fp32",
        "plain onnxruntime int8",
        "plain openvino",
    ]
    for name, run in rivals.items():
        exact = name in {REFERENCE, "plain onnxruntime fp32"}
        np.testing.assert_allclose(np.stack(run(rows)), wanted, atol=1e-4 if exact else 0.3, rtol=0, err_msg=name)


def test_the_share_of_padding_is_that_of_the_tokens_computed() -> None:
    def rows(*lengths: int) -> list[Any]:
        return [np.zeros(length, np.int32) for length in lengths]

    assert padding_share([rows(7), rows(9, 9)]) == 0
    assert padding_share([rows(8, 10)]) == pytest.approx(2 / 20)  # one call of two rows is cheaper than two calls
    assert padding_share([rows(8, 100)]) == 0  # two calls
    assert padding_share([rows(7), rows(9, 9)], step=8) == pytest.approx(15 / 40)
    found = padding_of([rows(4, 100), rows(8)])
    assert found == pytest.approx({"plain": 96 / 208, "ours": 0, "openvino": 8 / 120})


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    ids, mask = pad_rows([np.array([5, 6, 7], np.int32), np.array([8], np.int32)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
