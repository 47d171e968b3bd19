"""Triton python model that does nothing: the shape of the classifier's answer, and none of its work.

`loadtests.ceiling` loads it into the server under test. What a generator reaches against it is what generator, wire and server
can do on this machine; no measurement of a real model near that figure is one of the model.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answers B texts with zeros."""

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """One response a request."""
        return [self.respond(len(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy())) for request in requests]

    def respond(self, rows: int) -> pb_utils.InferenceResponse:
        """`rows` rows of nothing."""
        tensors = {
            "logits": np.zeros((rows, 2), np.float32),
            "truncated": np.zeros((rows, 1), np.bool_),
            "release": np.full((rows, 1), b"null", dtype=object),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors.items()])
