"""The child of `builders.instances`: one instance of an engine in a process of its own, as it is in Triton's stub.

Run as a file by a Python of its own. Orders come in as JSON, a line each, and answers go out likewise. It imports what the
engine's model.py imports, nothing of ours, so that PyTorch is not loaded beside another runtime.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_rows(model: Path, folder: Path, threads: int) -> Callable[[list[Any]], Any]:
    """Unpadded rows -> logits, by the engine in `folder` as the file `model` opens it."""
    sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")  # only Triton's stub has it
    spec = importlib.util.spec_from_file_location("served_engine", model)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"cannot load {model}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine, settings = module.open_engine(folder, threads)
    features = settings.get("features", 0)  # zeros stand for them: they take as long as others

    def run(rows: list[Any]) -> Any:
        return module.run_rows(engine, rows, beside=[np.zeros((len(rows), features), np.float32)] if features else [])

    return run


def seconds_of(run: Callable[[list[Any]], Any], rows: list[Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    run(rows)
    return time.perf_counter() - started


def saturate(run: Callable[[list[Any]], Any], batches: list[list[Any]], first: int, until: float) -> dict[str, float]:
    """Answer batch after batch until the monotonic clock says `until`; the batch under way is finished."""
    started, tokens = time.monotonic(), 0
    while time.monotonic() < until:
        run(batches[first % len(batches)])
        tokens += sum(map(len, batches[first % len(batches)]))
        first += 1
    return {"tokens": tokens, "seconds": time.monotonic() - started}


def main() -> None:
    """Open, answer every batch once, then obey. What a runtime prints goes to standard error."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.dont_write_bytecode = True
    order = json.loads(sys.stdin.readline())
    rows = [np.array(row, np.int32) for row in order["rows"]]
    batches = [rows[start : start + order["batch"]] for start in range(0, len(rows), order["batch"])]
    run = open_rows(Path(order["model"]), Path(order["folder"]), order["threads"])
    result: dict[str, Any] = {"batch_s": max(seconds_of(run, batch) for batch in batches)}
    for row in rows[: order["lone"]]:
        run([row])
    while True:
        print(json.dumps(result), file=answer, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # the runtimes' own tearing down takes seconds
        order |= json.loads(line)
        if "until" in order:
            result = saturate(run, batches, order["first"], order.pop("until"))
        else:
            result = {"lone_ms": [1000 * seconds_of(run, [row]) for row in rows[: order["lone"]]]}


if __name__ == "__main__":
    main()
