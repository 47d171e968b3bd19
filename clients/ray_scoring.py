"""`clients.scoring` as a Ray Data job: one task reads the texts, actors with a client each send them to the server.

Only texts and results travel through Ray; the command that started the job reads the other columns and writes the parts, so an
output is the same with and without Ray, and --resume works between the two. Ray is imported here and nowhere else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Generator, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read as ray is imported

import pyarrow
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockMetadata

from clients.async_classifier import connect_async
from clients.errors import ClassifierError, describe
from clients.scoring import FIELDS, Result, Row, Scorer, prepare
from clients.tables import open_table
from contract.command import Failure

LOCAL = "local"
LOCAL_STORE_BYTES = 256 * 2**20
BLOCK_BYTES = 256 * 1024
"""Texts that travel to an actor together. With Ray's own 128 MiB one actor gets everything, and its results come at the end."""

FAILURE = "failure"
"""Column by which an actor tells that it gave up; an exception would come wrapped in pages of Ray's own."""

CPUS_PER_ACTOR = 0.25
"""A client mostly waits for its server."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every part of the job needs to know."""

    input: Path
    text_column: str
    feature_columns: tuple[str, ...]
    """Of what the release reads beside each text, in its order; none where it reads text alone."""
    part_rows: int
    skip_parts: int
    """Parts that are finished already."""
    connection: dict[str, Any]
    """Arguments of `connect_async`."""
    batch: int
    in_flight: int
    actors: int


def results_from_ray(address: str, job: Job) -> Generator[Result, None, None]:
    """One result a row, in order, while the job runs. `address` is a cluster's, or "local" for one of this machine alone.

    Close the iterator to end the job. Raises Failure when the job fails, with what made it fail.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    local: dict[str, Any] = {"object_store_memory": LOCAL_STORE_BYTES, "include_dashboard": False} if address == LOCAL else {}
    ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    try:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.target_max_block_size = BLOCK_BYTES
        context.enable_progress_bars = False
        texts = ray.data.read_datasource(_Texts(job), override_num_blocks=1)
        scored = texts.map_batches(
            _Client,
            batch_size=None,  # as the blocks come
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=job.actors),
            num_cpus=CPUS_PER_ACTOR,
            fn_constructor_args=(job,),
        )
        for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            for *row, failure in zip(*(batch.column(name).to_pylist() for name in (*FIELDS, FAILURE)), strict=True):
                if failure is not None:
                    raise Failure(f"{failure}; what is finished is kept: go on with --resume")
                yield Result(*row)
    except ray.exceptions.RayError as error:
        raise Failure(f"the Ray job failed: {error}") from error
    finally:
        ray.shutdown()


class _Texts(ray.data.Datasource):  # type: ignore[misc]
    """The texts of the input as blocks of a part each, read by one task."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ray.data.ReadTask]:
        """One task: a CSV file cannot be entered in its middle, and the model is what takes the time."""
        job = self._job
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ray.data.ReadTask(lambda: _blocks(job), metadata)]


def _blocks(job: Job) -> Iterable[pyarrow.Table]:
    numbers = pyarrow.list_(pyarrow.float64())
    schema = pyarrow.schema([("text", pyarrow.large_string()), ("problem", pyarrow.large_string()), ("features", numbers)])
    table = open_table(job.input)
    try:
        for chunk in islice(table.read([job.text_column, *job.feature_columns], job.part_rows), job.skip_parts, None):
            columns = zip(*prepare(chunk, job.text_column, job.feature_columns), strict=True)
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            yield pyarrow.Table.from_arrays(arrays, schema=schema)
    finally:
        table.close()


class _Client:
    """One actor."""

    def __init__(self, job: Job) -> None:
        self._loop = asyncio.new_event_loop()
        self._scorer = self._loop.run_until_complete(_scorer(job))

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        """Columns `FIELDS` and `FAILURE`, a row each."""
        pairs = [Row(*values) for values in zip(*(rows.column(name).to_pylist() for name in Row._fields), strict=True)]
        results, failure = [Result()] * len(pairs), None
        try:
            results = self._loop.run_until_complete(self._scorer.score(pairs))
        except ClassifierError as error:
            failure = describe(error)
        types = {str: pyarrow.large_string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
        columns = {name: pyarrow.array([getattr(row, name) for row in results], types[kind]) for name, kind in FIELDS.items()}
        return pyarrow.table(columns | {FAILURE: pyarrow.array([failure] * len(pairs), types[str])})


async def _scorer(job: Job) -> Scorer:
    return Scorer(connect_async(**job.connection), batch=job.batch, in_flight=job.in_flight)
