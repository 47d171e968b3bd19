"""`builders.sensitivity`: the errors that running the whole graph again for every product would find, for less work."""

from __future__ import annotations

import numpy as np
import pytest

from builders.onnx_export import build_onnx
from builders.parity import text_batches
from builders.quantization_report import judge_logits
from builders.quantize import insert_qdq, make_judge
from builders.ranges import observe_ranges, product_inputs
from builders.sensitivity import after, by_layer, by_operator, measure_sensitivity
from contract.tensors import ATTENTION_MASK
from tests.tiny import random_bert, random_encoded, tiny_config

MODEL = random_bert(tiny_config(), seed=4, std=0.1)
GRAPH = build_onnx(MODEL, joint_attention=False)
ENCODED = random_encoded(20, MODEL.config, longest=30)
BATCHES = text_batches(ENCODED, MODEL.config.pad_token_id)
PRODUCTS = list(product_inputs(GRAPH))


def test_each_row_is_the_one_of_the_whole_graph() -> None:
    ranges = observe_ranges(GRAPH, [inputs for _, inputs in BATCHES])["min-max"]
    judge = make_judge(GRAPH, ENCODED, MODEL.config.pad_token_id)
    found = measure_sensitivity(GRAPH, lambda part, names: insert_qdq(part, ranges, names), BATCHES, ENCODED.labels)
    wanted = {name: [name] for name in PRODUCTS}
    assert list(found.products) == PRODUCTS
    operators, layers = by_operator(PRODUCTS), {f"layer {number}": names for number, names in by_layer(PRODUCTS).items()}
    for settings, parts in ((found.products, wanted), (found.operators, operators), (found.layers, layers)):
        assert list(settings) == list(parts)
        for name, names in parts.items():
            whole, own = judge.judge(insert_qdq(GRAPH, ranges, names), name), settings[name]
            assert (own.error, own.error_noise) == pytest.approx((whole.error, whole.error_noise), rel=1e-3)
            assert (own.flips, own.accuracy) == (whole.flips, whole.accuracy)


def test_the_noise_is_the_standard_error_over_the_texts() -> None:
    fp32 = np.zeros((4, 2), np.float32)
    ours = fp32 + np.array([[0.1], [0.3], [0.1], [0.3]], np.float32)
    setting = judge_logits("a", ours, fp32, [])
    assert (setting.error, setting.error_noise) == pytest.approx((0.2, 0.05))


def test_what_comes_after_a_layers_entry_is_that_layer_and_the_later_ones() -> None:
    entry = product_inputs(GRAPH)["bert.encoder.layer.1.attention.self.key.matmul"]
    part = after(GRAPH, entry)
    assert set(product_inputs(part)) == set(by_layer(PRODUCTS)[1])
    assert [value.name for value in part.graph.input] == [ATTENTION_MASK, entry]
    whole = sum(np.prod(constant.dims) for constant in GRAPH.graph.initializer)
    assert sum(np.prod(constant.dims) for constant in part.graph.initializer) < whole / 2
