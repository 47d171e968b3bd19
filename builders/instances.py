"""Measures placements of a written engine: texts per second with every instance busy, and the time of a text that is alone.

Each instance is a process of its own, as in the server, with the file that serves (`bert_engine/1/model.py`). The placements
are measured in turn, round after round, on held-out texts with their real lengths. Tokenizer and server are not running: what
a whole deployment does at a rate is what `loadtests.search` measures.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from builders import engine_process
from builders.engine_record import EngineRecord
from builders.parity import Int32
from builders.placement import (
    RULE,
    Number,
    Placement,
    Trial,
    as_json,
    choose_placement,
    find_placements,
    table,
)
from builders.repository import SOURCE, VERSION
from builders.timing import BATCH_SIZES
from contract.child import Child
from contract.files import read_json, write_json
from contract.tensors import ENGINE

ROUNDS = 5
LONE_TEXTS = 16
"""Answered one by one in every round."""
WINDOW_BATCHES = 4
"""Of the slowest batch fit into the time of a round in which all instances are busy."""
SHORTEST_S, LONGEST_S = 1.0, 10.0
"""Of such a time."""


def place_engine(
    folder: Path, record: EngineRecord, *, instances: Number, threads: Number, rows: Callable[[], Sequence[Int32]]
) -> EngineRecord:
    """State instances and threads in the `engine.json` of `folder` and in the record, measured where they are "auto".

    One instance over all cores is what is served when nothing is stated. `rows` are unpadded token ids of texts, asked for
    when something is measured.

    Raises:
        Failure: the engine crashes in a process of its own.
    """
    if (instances, threads) == (1, 0):
        return record
    cores = len(os.sched_getaffinity(0))
    trials: dict[Placement, Trial] = {}
    if "auto" in {instances, threads}:
        trials = measure_placements(folder, find_placements(instances, threads, cores), rows())
        chosen = choose_placement(trials)
        print(f"{table(trials, chosen)}\n{chosen}: {RULE}")
    else:
        (chosen,) = find_placements(instances, threads, cores)
    write_json(folder / "engine.json", read_json(folder / "engine.json") | {"threads": chosen.threads})
    return dataclasses.replace(record, hardware=record.hardware | {"placement": as_json(trials, chosen)})


def start_instance(folder: Path, threads: int, rows: Sequence[Int32]) -> Child:
    """One process with the engine open; it is ready when its first `answer` is there."""
    command = [sys.executable, "-I", str(Path(engine_process.__file__).resolve())]
    instance = Child(command, "an instance of the engine ended with code {code} while it was measured")
    model = SOURCE / ENGINE / VERSION / "model.py"
    order = {"model": str(model), "folder": str(folder.resolve()), "threads": threads}
    instance.ask({"rows": [row.tolist() for row in rows], "batch": BATCH_SIZES[-1], "lone": LONE_TEXTS} | order)
    return instance


def measure_placements(
    folder: Path, placements: Sequence[Placement], rows: Sequence[Int32], *, rounds: int = ROUNDS
) -> dict[Placement, Trial]:
    """A `Trial` of each placement of the engine in `folder`, on unpadded rows of token ids. Raises Failure when it crashes."""
    most: dict[int, int] = {}  # threads -> instances; placements of as many threads share their processes
    for one in placements:
        most[one.threads] = max(most.get(one.threads, 0), one.instances)
    trials = {one: Trial() for one in placements}
    mean_tokens = statistics.fmean(map(len, rows))
    with ExitStack() as stack:
        started = {
            threads: [stack.enter_context(start_instance(folder, threads, rows)) for _ in range(count)]
            for threads, count in most.items()
        }
        slowest = max(instance.answer()["batch_s"] for of_threads in started.values() for instance in of_threads)
        window_s = min(max(WINDOW_BATCHES * slowest, SHORTEST_S), LONGEST_S)
        for _ in tqdm(range(rounds), desc="instances and threads", unit="rounds", mininterval=0.5):
            for one, trial in trials.items():
                instances = started[one.threads][: one.instances]
                trial.texts_per_s.append(_saturate(instances, window_s, len(rows)) / mean_tokens)
                instances[0].ask({})
                trial.lone_ms.append(statistics.median(instances[0].answer()["lone_ms"]))
    return trials


def _saturate(instances: Sequence[Child], window_s: float, texts: int) -> float:
    """Tokens per second of all instances together; each begins at another text."""
    until = time.monotonic() + window_s
    for number, instance in enumerate(instances):
        instance.ask({"until": until, "first": number * texts // BATCH_SIZES[-1] // len(instances)})
    done: Iterable[dict[str, float]] = [instance.answer() for instance in instances]
    return sum(one["tokens"] / one["seconds"] for one in done)
