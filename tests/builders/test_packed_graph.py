"""`builders.packed_graph`: texts one behind the other answer as each does alone, and `builders.graph_runner` packs them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from builders.graph_runner import graph_engine, open_graph, pack
from builders.graph_writer import PRECISIONS
from builders.packed_graph import OFFSETS, packed_batch, packed_onnx
from builders.standard_graph import EXTRA_OUTPUTS, standard_onnx
from contract.tensors import INPUT_IDS, LOGITS
from tests.builders.test_onnx_export import CONFIGS, batch_of, reference, value_info
from tests.builders.test_standard_graph import typing_of
from tests.tiny import random_bert, tiny_config

MIXES = ([1], [40], [1, 1], [5, 9, 3], [40, 1, 40], [7, 40, 2, 13, 1, 29], [3] * 17, list(range(1, 31)))


@pytest.mark.parametrize("lengths", MIXES, ids=lambda lengths: "-".join(map(str, lengths[:6])))
def test_any_mix_of_lengths_answers_as_padded(lengths: list[int]) -> None:
    model = random_bert(tiny_config())
    ids, mask = batch_of(lengths, max(lengths), model.config.vocab_size)
    logits = graph_engine(packed_onnx(model), threads=1)(ids, mask)
    np.testing.assert_allclose(logits, reference(model, ids, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["one layer, which is the first and the last", "one head", "many classes", "one token type"])
def test_other_shapes_of_the_model_too(name: str) -> None:
    model = random_bert(tiny_config(**CONFIGS[name]), seed=len(name))
    ids, mask = batch_of([4, 11, 1], 11, model.config.vocab_size)
    logits = graph_engine(packed_onnx(model), threads=1)(ids, mask)
    np.testing.assert_allclose(logits, reference(model, ids, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_rounds_as_the_padded_graph_does(precision: str) -> None:
    model = random_bert(tiny_config())
    typing = typing_of(precision, model, 5.0)
    ids, mask = batch_of([6, 23, 1], 23, model.config.vocab_size)
    packed, padded = (graph_engine(write(model, typing), threads=1)(ids, mask) for write in (packed_onnx, standard_onnx))
    np.testing.assert_allclose(packed, padded, atol={"fp32": 1e-5, "fp16": 0.01, "bf16": 0.1}.get(precision, 0.5), rtol=0)


def test_neighbours_change_nothing() -> None:
    model = random_bert(tiny_config())
    session = open_graph(packed_onnx(model), threads=1)
    alone = session.run([LOGITS], packed_batch([4], [9, 8, 7, 6]))[0]
    among = session.run([LOGITS], packed_batch([2, 4, 3], [1, 2, 9, 8, 7, 6, 3, 4, 5]))[0]
    np.testing.assert_allclose(among[1:2], alone, atol=1e-5, rtol=0)


def test_inputs_are_what_tritons_ragged_batching_gives() -> None:
    graph = packed_onnx(random_bert(tiny_config()), outputs=EXTRA_OUTPUTS).graph
    assert value_info(graph.input) == [
        (INPUT_IDS, TensorProto.INT32, ["tokens"]),
        (OFFSETS, TensorProto.INT32, ["batch_and_one"]),
    ]
    assert [value.name for value in graph.output] == [LOGITS, *EXTRA_OUTPUTS]


def test_packing_strips_the_padding_and_counts_up() -> None:
    ids = np.array([[5, 6, 0], [7, 0, 0]], dtype=np.int32)
    mask = np.array([[1, 1, 0], [1, 0, 0]], dtype=np.int32)
    packed = pack(ids, mask)
    assert packed[INPUT_IDS].tolist() == [5, 6, 7]
    assert packed[OFFSETS].tolist() == [0, 2, 3]
    assert packed[OFFSETS].dtype == np.int32
    with pytest.raises(ValueError, match="row 1 has no token"):
        pack(ids, np.array([[1, 0, 0], [0, 0, 0]], dtype=np.int32))
