"""Our BERT without padding: the texts of a batch one behind the other, and attention that stays within each text.

For Triton's ragged batching: the server joins requests of any lengths into one row of ids and tells where each begins
(`batch_input` of kind BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO). Every linear layer then works on real tokens alone; the price
is a mask over all pairs of tokens of the batch, so cap the tokens in flight (see docs/tensorrt.md). Standard operators alone.

The offsets come from the server, never from a client.

Shapes: B texts, T tokens of all texts, D hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from builders.graph_writer import GraphWriter, Typing
from builders.standard_graph import FIRST_TOKEN, PACKED, embedded, embedding_tables, encoder, head
from contract.tensors import INPUT_IDS
from training.bert import BertForSequenceClassification

OFFSETS = "token_offsets"  # INT32 [B + 1]: where each text begins, and the number of all tokens
INT32, BOOL = TensorProto.INT32, TensorProto.BOOL


def packed_onnx(
    model: BertForSequenceClassification, typing: Typing | None = None, *, outputs: Collection[str] = ()
) -> onnx.ModelProto:
    """The packed graph: `input_ids` INT32 [T], `token_offsets` INT32 [B + 1] -> `logits` FP32 [B, C].

    Args:
        model: without numeric features.
        typing: FP32 when left out.
        outputs: of `standard_graph.EXTRA_OUTPUTS`, those wanted beside the logits.
    """
    graph = GraphWriter(model, typing or Typing(), dict.fromkeys((INPUT_IDS, OFFSETS), INT32))
    starts, text, position = _places(graph)
    hidden = _embeddings(graph, position)
    column = graph.add("Unsqueeze", [text, graph.integers("text.column.axes", [1])], "text.column")
    row = graph.add("Unsqueeze", [text, graph.integers("text.row.axes", [0])], "text.row")
    mask = graph.add("Equal", [column, row], "mask", type=BOOL)  # [T, T]: of one text

    def first_token(hidden: str) -> tuple[str, str]:
        first = graph.add("Gather", [hidden, starts], FIRST_TOKEN, axis=0)  # [B, D]
        own = graph.add("Gather", [text, starts], "first_token.text")
        own = graph.add("Unsqueeze", [own, graph.integers("first_token.text.axes", [1])], "first_token.text.column")
        return first, graph.add("Equal", [own, row], "first_token.mask", type=BOOL)  # [B, T]

    first = encoder(graph, PACKED, hidden, mask, first_token)
    inputs = [
        helper.make_tensor_value_info(INPUT_IDS, INT32, ["tokens"]),
        helper.make_tensor_value_info(OFFSETS, INT32, ["batch_and_one"]),
    ]
    return graph.finish(inputs, head(graph, first, outputs), "bert_packed")


def _places(graph: GraphWriter) -> tuple[str, str, str]:
    """(each text's first token [B], each token's text [T], each token's position in it [T]), all INT32."""

    def part(name: str, start: int, end: int) -> str:
        numbers = {"from": start, "to": end, "axes": 0}
        bounds = [graph.constant(f"{name}.{side}", np.array([number]), INT32) for side, number in numbers.items()]
        return graph.add("Slice", [OFFSETS, *bounds], name)

    def scalar(name: str, value: int) -> str:
        return graph.constant(name, np.array(value), INT32)

    starts, ends = part("starts", 0, -1), part("ends", 1, np.iinfo(np.int32).max)
    shape = graph.add("Shape", [INPUT_IDS], "token_shape", type=TensorProto.INT64)
    size = graph.add("Squeeze", [shape, graph.integers("token_shape.axes", [0])], "token_count")
    count = graph.cast(size, INT32)
    token = graph.add("Range", [scalar("token.from", 0), count, scalar("token.step", 1)], "token")  # [T]
    column = graph.add("Unsqueeze", [token, graph.integers("token.axes", [1])], "token.column")
    passed = graph.add("GreaterOrEqual", [column, ends], "passed", type=BOOL)  # [T, B]
    counted = [graph.cast(passed, INT32), graph.integers("text.axes", [1])]
    text = graph.add("ReduceSum", counted, "text", keepdims=0)  # texts that end before this token
    begin = graph.add("Gather", [OFFSETS, text], "token.begin")
    return starts, text, graph.add("Sub", [token, begin], "token.position")


def _embeddings(graph: GraphWriter, position: str) -> str:
    """[T] -> [T, D]."""
    words, table = embedding_tables(graph)
    word = graph.add("Gather", [words, INPUT_IDS], "words")
    return embedded(graph, word, graph.add("Gather", [table, position], "positions"))


def packed_batch(lengths: Collection[int], ids: Collection[int]) -> dict[str, Any]:
    """What the packed graph is fed for texts of these lengths whose ids stand one behind the other."""
    offsets = np.concatenate([[0], np.cumsum(list(lengths))])
    return {INPUT_IDS: np.array(list(ids), dtype=np.int32), OFFSETS: offsets.astype(np.int32)}
