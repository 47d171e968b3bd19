"""`builders.sensitivity`: the errors that running the whole graph again for every product would find, for less work."""

from __future__ import annotations

import numpy as np
import pytest

from builders.onnx_export import build_onnx
from builders.parity import text_batches
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


def test_each_error_is_the_one_of_the_whole_graph() -> None:
    ranges = observe_ranges(GRAPH, [inputs for _, inputs in BATCHES])["min-max"]
    judge = make_judge(GRAPH, ENCODED, MODEL.config.pad_token_id)
    single, operators = measure_sensitivity(GRAPH, lambda part, names: insert_qdq(part, ranges, names), BATCHES)
    assert list(single) == PRODUCTS
    for name, error in single.items():
        assert error == pytest.approx(judge.judge(insert_qdq(GRAPH, ranges, [name]), name).error, rel=1e-3)
    for operator, names in by_operator(PRODUCTS).items():
        assert operators[operator] == pytest.approx(judge.judge(insert_qdq(GRAPH, ranges, names), operator).error, rel=1e-3)


def test_what_comes_after_a_layers_entry_is_that_layer_and_the_later_ones() -> None:
    entry = product_inputs(GRAPH)["bert.encoder.layer.1.attention.self.key.matmul"]
    part = after(GRAPH, entry)
    assert set(product_inputs(part)) == set(by_layer(PRODUCTS)[1])
    assert [value.name for value in part.graph.input] == [ATTENTION_MASK, entry]
    whole = sum(np.prod(constant.dims) for constant in GRAPH.graph.initializer)
    assert sum(np.prod(constant.dims) for constant in part.graph.initializer) < whole / 2
