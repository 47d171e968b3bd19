"""The engine as it is served: `bert_engine/1/model.py` itself, loaded outside of Triton.

What a build proves and a bench times is the file that Triton's stub will run, with its grouping of rows and its settings of
the runtime, and not a second implementation of it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from builders.parity import Engine, Float32, Int32
from builders.repository import SOURCE, VERSION
from contract.tensors import ENGINE

BACKEND = "triton_python_backend_utils"


@functools.cache
def engine_module() -> ModuleType:
    """The module. Outside of Triton its backend does not exist; an empty one stands in while the file is read."""
    path = SOURCE / ENGINE / VERSION / "model.py"
    spec = importlib.util.spec_from_file_location("served_bert_engine", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    real = sys.modules.get(BACKEND)
    sys.modules[BACKEND] = ModuleType(BACKEND)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[BACKEND]
        if real is not None:
            sys.modules[BACKEND] = real
    return module


def open_served(folder: Path, *, threads: int = 0) -> Engine:
    """The engine of a version folder, as `builders.parity` calls one; 0 threads: every core."""
    engine: Engine = engine_module().open_engine(folder, threads)[0]
    return engine


def batch_runner(engine: Engine) -> Engine:
    """What answers padded batches as the server does: padding taken off, rows grouped, in the engine's lanes where it has some.

    A batch with a row of nothing but padding, which no client may send, is one call.
    """
    module = engine_module()

    def run(ids: Int32, mask: Int32, *features: Float32) -> Float32:
        if not mask[:, 0].all():
            return engine(ids, mask, *features)
        return np.stack(module.run_rows(engine, module.strip_padding(ids, mask), beside=features))

    return run


def row_runner(engine: Engine, *, features: int = 0) -> Callable[[Sequence[Int32]], list[Float32]]:
    """The served way from unpadded rows to their logits: sorted by length, grouped, padded within a group.

    An engine that reads features is given so many zeros beside each row, which take as long as others: for timing alone.
    """
    run_rows = engine_module().run_rows

    def run(rows: Sequence[Int32]) -> list[Float32]:
        beside = [np.zeros((len(rows), features), np.float32)] if features else []
        logits: list[Float32] = run_rows(engine, list(rows), beside=beside)
        return logits

    return run


def padding_share(batches: Sequence[Sequence[Int32]], *, step: int = 1, lanes: int = 1) -> float:
    """Share of the tokens computed for these batches of unpadded rows that is padding, in calls of an engine of this kind."""
    module = engine_module()
    engine = module.Engine(None, step, positions=sys.maxsize, most=module.most_tokens(lanes))  # which is never called
    computed = tokens = 0
    for rows in batches:
        lengths = [len(row) for row in rows]
        tokens += sum(lengths)
        groups = module.group_rows(lengths, engine)
        computed += sum(len(group) * engine.length([lengths[row] for row in group]) for group in groups)
    return 1 - tokens / computed
