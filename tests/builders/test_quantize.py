"""`builders.quantize`: int8 where it was asked for and nowhere else, ranges as observed, and a gate that can send it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import builders.quantize
from builders.calibration import Calibration
from builders.onnx_export import build_onnx
from builders.parity import Int32, make_reference
from builders.quantization_report import Setting, write_report
from builders.quantize import (
    check_quantised,
    exclude_until_accurate,
    insert_qdq,
    make_judge,
    quantise_model,
)
from builders.ranges import observe_ranges, product_inputs
from builders.sensitivity import by_operator, operator_of
from contract.command import Failure, UsageError
from contract.files import read_json
from tests.tiny import random_bert, random_encoded, tiny_config
from training.checkpoint import load_checkpoint, read_heldout
from training.ranges import PERCENTILES, widest_of_the_best

MODEL = random_bert(tiny_config(), seed=4, std=0.1)
GRAPH = build_onnx(MODEL, joint_attention=False)
ENCODED = random_encoded(40, MODEL.config, longest=30)
PRODUCTS = list(product_inputs(GRAPH))


def batches(rows: int = 8) -> list[tuple[Int32, Int32]]:
    """Rows of 12 tokens of which the last few are padding."""
    generator = np.random.default_rng(0)
    ids = generator.integers(8, MODEL.config.vocab_size, (rows, 12), dtype=np.int32)
    return [(ids, (np.arange(12) < generator.integers(5, 13, rows)[:, None]).astype(np.int32))]


@pytest.fixture(scope="module")
def ranges() -> Any:
    return observe_ranges(GRAPH, batches())


def test_every_product_of_a_layer_with_a_constant_is_seen_and_nothing_else() -> None:
    wanted = [*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense"]
    wanted += ["intermediate.dense", "output.dense"]
    names = {f"bert.encoder.layer.{layer}.{name}.matmul" for layer in range(2) for name in wanted}
    assert set(PRODUCTS) == names
    assert set(by_operator(PRODUCTS)) == set(wanted)
    assert operator_of("bert.encoder.layer.11.attention.output.dense.matmul") == (11, "attention.output.dense")


def test_ranges_grow_with_the_percentile_and_the_widest_are_the_extremes(ranges: Any) -> None:
    named = list(PERCENTILES)
    assert list(ranges) == named
    for tensor in ranges["min-max"]:
        lows, highs = zip(*(ranges[name][tensor] for name in named), strict=True)
        assert list(lows) == sorted(lows, reverse=True)
        assert list(highs) == sorted(highs)
        assert max(lows) <= 0 <= min(highs)


def test_padding_does_not_widen_a_range(ranges: Any) -> None:
    ids, mask = batches()[0]
    strange = ids.copy()
    strange[mask == 0] = 3  # another token under the padding
    assert observe_ranges(GRAPH, [(strange, mask)])["min-max"]["embeddings"] == ranges["min-max"]["embeddings"]


@pytest.mark.parametrize("names", [PRODUCTS, PRODUCTS[:1], PRODUCTS[5:7]], ids=["all", "the first", "two"])
def test_exactly_the_named_products_are_int8(ranges: Any, names: list[str]) -> None:
    quantised = insert_qdq(GRAPH, ranges["min-max"], names)
    weights = {item.name: numpy_helper.to_array(item) for item in quantised.graph.initializer}
    for node in quantised.graph.node:
        if node.op_type == "MatMul" and node.name in PRODUCTS:
            inside = node.input[1] not in weights
            assert inside == (node.name in names)
    narrow = [value for value in weights.values() if value.dtype == np.int8 and value.ndim == 2]
    assert len(narrow) == len(names)
    assert max(int(np.abs(value.astype(int)).max()) for value in narrow) <= 64  # 7 bits: nothing saturates without VNNI


def test_what_is_not_int8_reads_the_exact_activations(ranges: Any) -> None:
    """The residual stream, and the products of the same input that stay in fp32."""
    quantised = insert_qdq(GRAPH, ranges["min-max"], PRODUCTS[:1])
    rounded = {node.output[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    assert [node.name for node in quantised.graph.node if rounded & set(node.input)] == PRODUCTS[:1]
    before = {node.name: list(node.input) for node in GRAPH.graph.node}
    after = {node.name: list(node.input) for node in quantised.graph.node if node.name in before}
    assert [name for name in before if before[name] != after[name]] == PRODUCTS[:1]


def test_a_product_that_the_quantizer_left_out_is_a_failure() -> None:
    with pytest.raises(Failure, match=rf"left {len(PRODUCTS)} products in fp32, the first is bert\.encoder"):
        check_quantised(GRAPH, PRODUCTS)


def test_each_judgement_is_of_the_rows_and_the_whole_graph_is_near_fp32(ranges: Any) -> None:
    judge = make_judge(GRAPH, ENCODED, MODEL.config.pad_token_id)
    np.testing.assert_allclose(judge.logits, make_reference(MODEL, ENCODED).logits, atol=1e-5, rtol=0)
    assert judge.judge(GRAPH, "fp32").error == 0
    whole = judge.judge(insert_qdq(GRAPH, ranges["min-max"], PRODUCTS), "all")
    one = judge.judge(insert_qdq(GRAPH, ranges["min-max"], PRODUCTS[:1]), "one")
    assert 0 < one.error < whole.error < 0.1
    assert whole.accuracy is not None


def test_of_percentiles_that_are_as_good_the_widest_is_taken() -> None:
    def widest(*errors: float) -> str:
        return widest_of_the_best(dict(zip(PERCENTILES, errors, strict=True)))

    assert widest(1.00, 1.04, 1.02, 1.05, 1.06) == "99.9999"
    assert widest(0.9, 1.04, 1.02, 1.05, 1.06) == "99.9"
    assert widest(1e-5, 2e-5, 3e-5, 4e-5, 9e-4) == "min-max"


class Strict:
    """A judge for whom a graph passes only when at most `allowed` products are int8."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def judge(self, graph: onnx.ModelProto, name: str) -> Setting:
        weights = [node.input[1] for node in graph.graph.node if node.op_type == "MatMul"]
        products = sum(weight.endswith("DequantizeLinear_Output") for weight in weights)
        return Setting(name=name, error=0.0, error_noise=0.0, flips=0.0 if products <= self.allowed else 1.0, accuracy=None)


def test_the_most_sensitive_products_go_back_to_fp32_until_the_gate_holds(ranges: Any) -> None:
    sensitivity = {name: float(number) for number, name in enumerate(PRODUCTS)}
    judge: Any = Strict(len(PRODUCTS) - 2)
    graph, steps = exclude_until_accurate(GRAPH, ranges["min-max"], sensitivity, judge)
    assert [step.name for step in steps] == [f"without {PRODUCTS[-1]}", f"without {PRODUCTS[-2]}"]
    assert [step.passes for step in steps] == [False, True]
    check_quantised(graph, PRODUCTS[:-2])


def test_a_gate_that_never_holds_is_a_failure(ranges: Any) -> None:
    judge: Any = Strict(0)
    with pytest.raises(Failure, match=r"loses too much accuracy.*use --precision bf16 or fp32"):
        exclude_until_accurate(GRAPH, ranges["min-max"], dict.fromkeys(PRODUCTS[:2], 1.0), judge)


@pytest.mark.parametrize(("texts", "validation"), [([], ["a"]), (["a"], [])])
def test_no_texts_are_refused(texts: list[str], validation: list[str], merged: Path) -> None:
    checkpoint = load_checkpoint(merged)
    with pytest.raises(UsageError, match="int8 is calibrated on texts, and there are none"):
        quantise_model(checkpoint.model, checkpoint.tokenizer, Calibration(texts, validation, [], "nowhere"))


def test_the_report_holds_all_that_was_tried_as_json_markdown_and_a_picture(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders.quantize, "SENSITIVITY_ROWS", 4)
    checkpoint = load_checkpoint(merged)
    texts = [row["text"] for row in read_heldout(merged)]
    labels = [checkpoint.labels.index(row["label"]) for row in read_heldout(merged)]
    calibration = Calibration(texts[:9], texts[9:20], labels[9:20], "tests")
    _, report = quantise_model(checkpoint.model, checkpoint.tokenizer, calibration, explain=True)
    write_report(tmp_path / "report", report)
    written = read_json(tmp_path / "report" / "quantization.json")
    assert [setting["name"] for setting in written["sweep"]] == list(PERCENTILES)
    assert len(written["sensitivity"]) == 6 * checkpoint.model.config.num_hidden_layers
    assert written["chosen"] in PERCENTILES
    assert (written["calibration_texts"], written["validation_texts"]) == (9, 11)
    markdown = (tmp_path / "report" / "quantization.md").read_text(encoding="utf-8")
    assert "int8, calibrated on 9 texts of tests, judged on 11 of the validation part" in markdown
    assert "| min-max | " in markdown
    assert "Sensitivity, on 4 of these texts:" in markdown
    for table in ("operator alone, all layers", "layer alone, all its products", "most sensitive products, each alone"):
        assert f"| {table} | mean logit error ± noise | labels that differ | accuracy, points ± noise |" in markdown
    assert len(written["layers"]) == checkpoint.model.config.num_hidden_layers
    assert all(setting["accuracy"]["rows"] == 4 for setting in written["layers"].values())
    assert (tmp_path / "report" / "quantization.png").read_bytes().startswith(b"\x89PNG")


def test_sensitivities_are_measured_where_a_product_has_to_go_back_and_else_not(
    merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(merged)
    texts = [row["text"] for row in read_heldout(merged)]
    calibration = Calibration(texts[:9], texts[9:20], [], "tests")
    _, quick = quantise_model(checkpoint.model, checkpoint.tokenizer, calibration)
    assert [step.name for step in quick.steps] == ["all products"]
    assert (quick.sensitivity, quick.operators, quick.layers, quick.sensitivity_texts) == ({}, {}, {}, 0)
    assert "most sensitive" not in quick.markdown()
    products = 6 * checkpoint.model.config.num_hidden_layers
    monkeypatch.setattr(builders.quantize.Judge, "judge", Strict(products - 1).judge)
    graph, report = quantise_model(checkpoint.model, checkpoint.tokenizer, calibration)
    most = max(report.sensitivity.values(), key=lambda setting: setting.error).name
    assert [(step.name, step.passes) for step in report.steps] == [("all products", False), (f"without {most}", True)]
    check_quantised(graph, [name for name in report.sensitivity if name != most])
