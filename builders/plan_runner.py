"""A plan run on the GPU that it was built for, through torch's CUDA memory: how the proof of a release meets the plan itself.

Serving is Triton's; this is for the build, which must not believe a plan that it has not run.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from builders.graph_runner import pack
from builders.graph_writer import Array
from builders.packed_graph import OFFSETS
from builders.parity import Engine, Float32, feed_of
from builders.plan_settings import Profile
from contract.command import Failure
from contract.tensors import LOGITS

_TYPES = {"FLOAT": torch.float32, "INT32": torch.int32}


def find_profile(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The number of the first profile that holds these shapes; None when none does."""
    for number, profile in enumerate(profiles):
        if all(
            all(a <= x <= b for a, x, b in zip(profile.shapes[name][0], shape, profile.shapes[name][2], strict=True))
            for name, shape in shapes.items()
        ):
            return number
    return None


def plan_engine(engine: Any, profiles: Sequence[Profile]) -> Engine:
    """An opened engine as `builders.parity` calls one. Needs torch with CUDA; packed ones take no row without a token.

    Raises:
        Failure: torch sees no GPU, or an output is of another type than the contract's.
    """
    if not torch.cuda.is_available():
        raise Failure("torch sees no GPU, so the plan cannot be compared with its checkpoint; install torch with CUDA")
    context = engine.create_execution_context()
    packed = OFFSETS in profiles[0].shapes

    def run(*inputs: Array) -> Float32:
        feed = pack(*inputs) if packed else feed_of(inputs)
        stream = torch.cuda.current_stream()
        number = find_profile(profiles, {name: array.shape for name, array in feed.items()})
        if number is None:
            raise Failure(f"no profile of the plan holds { ({name: list(array.shape) for name, array in feed.items()}) }")
        if not context.set_optimization_profile_async(number, stream.cuda_stream):
            raise Failure(f"TensorRT does not switch to profile {number}")
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feed.items()}
        for name, tensor in tensors.items():
            context.set_input_shape(name, tuple(tensor.shape))
        outputs = _outputs(engine, context)
        for name, tensor in (tensors | outputs).items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise Failure(f"TensorRT cannot run the plan on shapes {[list(tensor.shape) for tensor in tensors.values()]}")
        stream.synchronize()
        logits: Float32 = outputs[LOGITS].cpu().numpy()
        return logits

    return run


def _outputs(engine: Any, context: Any) -> dict[str, torch.Tensor]:
    """Memory for every output at the context's present input shapes."""
    found = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        if str(engine.get_tensor_mode(name)).endswith("OUTPUT"):
            kind = str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
            if kind not in _TYPES:
                raise Failure(f"the plan's output {name} is {kind}; wanted {' or '.join(_TYPES)}")
            found[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=_TYPES[kind], device="cuda")
    return found
