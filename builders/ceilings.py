"""What this machine's cores can compute at most: a large matrix product in fp32, bf16 and int8, and the work of a BERT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from training.bert_config import BertConfig

SIZE = 2048
OPERATIONS = 2 * SIZE**3
"""Of one product of two SIZE x SIZE matrices."""


def ceiling_calls() -> dict[str, Callable[[], object]]:
    """One product by name of the precision. int8 is ONNX Runtime's, u8 x s8 with a constant weight, as in an engine."""
    matrix = torch.rand(SIZE, SIZE)
    narrow = matrix.bfloat16()
    return {"fp32": lambda: matrix @ matrix, "bf16": lambda: narrow @ narrow, "int8": _int8_product()}


def _int8_product() -> Callable[[], object]:
    generator = np.random.default_rng(0)
    weight = numpy_helper.from_array(generator.integers(-64, 64, (SIZE, SIZE), dtype=np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "int8_product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [SIZE, SIZE])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = generator.integers(0, 255, (SIZE, SIZE), dtype=np.uint8)
    return lambda: session.run(None, {"x": values})


def bert_operations(config: BertConfig, *, batch: int, tokens: int) -> int:
    """Multiplications and additions of the encoder's matrix products for [batch, tokens], as our engines compute them.

    Of the last layer only K and V are computed for every token, and all else for the first alone.
    """
    wide, narrow = config.intermediate_size, config.hidden_size
    rest = 2 * narrow * narrow + 2 * narrow * wide  # Q, attention's output, both halves of the feed-forward
    full = 2 * tokens * (rest + 2 * narrow * narrow) + 4 * tokens * tokens * narrow
    last = 2 * (rest + 2 * tokens * narrow * narrow) + 4 * tokens * narrow
    return batch * ((config.num_hidden_layers - 1) * full + last)
