"""The generator's own ceiling: what it reaches against a model that does nothing, in the very server that is tested.

The null model travels in the load call of Triton's model control, so nothing is written into the served repository; that
call needs the operator's token. It runs for a few seconds before the test and is unloaded again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.command import Failure
from contract.tensors import LOGITS, MAX_BATCH_SIZE, RELEASE, TEXT, TRUNCATED
from loadtests.closed import run_closed
from loadtests.operator import Operator
from loadtests.record import Requests, run_precisely
from loadtests.result import Ceiling
from loadtests.target import GrpcTarget

NULL_MODEL = "bert_null"
SOURCE = Path(__file__).parent / "null_model" / "model.py"
USERS = 32
"""In flight, for an open loop; a closed one brings its own number."""
WARMUP_S = 0.5
DURATION_S = 2.0

UNKNOWN = Ceiling(
    requests_per_s=None,
    how="not measured: it needs the operator's token, --repository; the generator's CPU share is the only guard",
)


def null_config() -> dict[str, Any]:
    """The configuration of a model with the classifier's inputs and outputs."""
    kinds = {LOGITS: ("TYPE_FP32", 2), TRUNCATED: ("TYPE_BOOL", 1), RELEASE: ("TYPE_STRING", 1)}
    return {
        "backend": "python",
        "max_batch_size": MAX_BATCH_SIZE,
        "input": [{"name": TEXT, "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [{"name": name, "data_type": kind, "dims": [size]} for name, (kind, size) in kinds.items()],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
        "dynamic_batching": {},
    }


def measure_ceiling(operator: Operator, url: str, requests: Requests, *, users: int = USERS, timeout_s: float) -> Ceiling:
    """Answers per second with so many requests in flight. Raises `Failure` when the server does not load the null model."""

    async def run() -> int:
        async with GrpcTarget(url, requests, model=NULL_MODEL, timeout_s=timeout_s) as target:
            recording = await run_closed(
                target.send, requests, users=users, warmup_s=WARMUP_S, duration_s=DURATION_S, timeout_s=timeout_s
            )
        return sum(not sample.error and 0 <= sample.done_s < DURATION_S for sample in recording.samples)

    with operator.loaded(NULL_MODEL, null_config(), SOURCE):
        answers = run_precisely(run())
    if not answers:
        raise Failure(f"the null model gave no answer within {DURATION_S:g} s at {url}")
    how = f"closed loop, {users} in flight for {DURATION_S:g} s, a python model that does nothing in the same server"
    return Ceiling(requests_per_s=answers / DURATION_S, how=how)
