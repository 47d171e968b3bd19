"""Classify every row of a file, however large, with a running server.

    python -m clients.score questions.csv scored.parquet --text-column body --url 127.0.0.1:8001
    python -m clients.score questions.csv scored.parquet --text-column body --resume      after it was killed
    python -m clients.score questions.parquet scored.parquet --text-column body --ray local

Reads .csv, .csv.gz, .jsonl, .jsonl.gz and .parquet, writes .csv and .parquet. Every row of the input is one row of the output,
in the same order, with the columns label, score, truncated, release and error behind its own. Rows that cannot be classified
(no text, too long, not UTF-8, a broken line) say why in `error`; --strict stops at the first one. What is finished lies in
OUTPUT.parts until the end, and --resume goes on from there.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from clients.async_classifier import connect_async
from clients.errors import ClassifierError, describe
from clients.parts import Parts, parts_of
from clients.retry import RetryPolicy
from clients.scoring import FIELDS, Result, Scorer, in_order, prepare
from clients.tables import CSV, PARQUET, Chunk, Table, format_of, join_parts, open_table, output_schema, write_part
from clients.tls import tls_from_flags
from clients.wire import ProtocolName
from contract.command import Failure, UsageError, run_command
from contract.tensors import CLASSIFIER, MAX_BATCH_SIZE


@dataclass(frozen=True, kw_only=True)
class Score:
    """Classify every row of a file."""

    input: Annotated[Path, tyro.conf.Positional]
    """File to read: .csv, .jsonl (each also .gz) or .parquet, with a column of texts."""
    output: Annotated[Path, tyro.conf.Positional]
    """File to write: .csv or .parquet; it must not exist."""
    text_column: str
    """Name of the column that holds the texts."""
    feature_columns: tuple[str, ...] | None = None
    """Columns of the numbers that the release reads beside each text, in its order; those of its own names when left out."""
    url: str = "127.0.0.1:8001"
    """host:port of the server, for the protocol chosen."""
    protocol: ProtocolName = "grpc"
    """grpc (Triton's port 8001) or http (8000)."""
    model: str = CLASSIFIER
    """Which of the server's classifiers is asked."""
    batch: int = MAX_BATCH_SIZE
    """Texts in one request."""
    in_flight: int = 16
    """Requests under way at once."""
    timeout_s: float = 120.0
    """Deadline of one request with its retries, in seconds."""
    retries: int = 40
    """How often a request is sent again while the server is away or full; the waits between grow to 2 s."""
    resume: bool = False
    """Go on with a run that was stopped or killed."""
    strict: bool = False
    """Stop at the first row that cannot be classified."""
    keep: tuple[str, ...] | None = None
    """Columns of the input to copy into the output; all of them when left out."""
    prefix: str = ""
    """Put before the names of the new columns, for inputs that have a column `label` already."""
    part_rows: int = 4096
    """Rows finished between two points that --resume can go on from."""
    tls: bool = False
    """Encrypt the connection."""
    tls_ca: Path | None = None
    """PEM file of the authority that signed the server's certificate; those of the system when left out."""
    tls_certificate: Path | None = None
    """PEM file of a certificate for this client, where the server asks for one."""
    tls_key: Path | None = None
    """PEM file of that certificate's key."""
    ray: str | None = None
    """Run as a Ray Data job: `local`, or the address of a cluster whose machines can all read the input."""
    ray_actors: int = 2
    """Clients of the Ray job, each with --in-flight requests."""

    def __post_init__(self) -> None:
        for name in ("in_flight", "part_rows", "ray_actors", "retries"):
            least = 0 if name == "retries" else 1
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; at least {least} is needed")
        if not 1 <= self.batch <= MAX_BATCH_SIZE:
            raise UsageError(f"--batch is {self.batch}; the server takes 1 to {MAX_BATCH_SIZE} texts a request")
        if not self.timeout_s > 0:
            raise UsageError(f"--timeout-s is {self.timeout_s}; it must be above 0")
        if format_of(self.output, "the output") not in {CSV, PARQUET} or self.output.suffix == ".gz":
            raise UsageError(f"the output is {self.output}; its name must end in .csv or .parquet")
        self.connection()  # checks the files of --tls

    def connection(self) -> dict[str, Any]:
        """Arguments of `connect_async`."""
        policy = RetryPolicy(attempts=self.retries + 1, retry_rejected=True)
        options = {"model": self.model, "timeout_s": self.timeout_s, "retry": policy, "in_flight": self.in_flight}
        tls = tls_from_flags(self.tls, self.tls_ca, self.tls_certificate, self.tls_key)
        return {"url": self.url, "protocol": self.protocol, "tls": tls, **options}


@dataclass
class Summary:
    """What a run did, resumed parts left out."""

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    errors: int = 0
    seconds: float = 0.0

    def add(self, results: list[Result]) -> None:
        """Count the results of a chunk."""
        self.rows += len(results)
        self.labels.update(row.label for row in results if row.label is not None)
        self.truncated += sum(bool(row.truncated) for row in results)
        self.errors += sum(row.error is not None for row in results)

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.seconds else 0.0
        lines = [f"{self.rows} rows scored in {self.seconds:.1f} s, {rate:.0f} a second"]
        lines += [f"{self.errors} without a label: see the column error"] if self.errors else []
        lines += [f"{self.truncated} longer than the model reads"] if self.truncated else []
        lines += [f"  {count:>12} {label}" for label, count in self.labels.most_common()]
        return "\n".join(lines)


_KEPT = "what is finished is kept: put it right, and go on with --resume"


def score(options: Score) -> Summary:
    """Run the command; see the module docstring. Raises UsageError and Failure."""
    if options.output.exists():
        raise UsageError(f"the output {options.output} exists already; name another one, or remove it first")
    table = open_table(options.input)
    try:
        kept = _kept_columns(options, table)
        with parts_of(options.output, _manifest(options, kept), resume=options.resume) as parts:
            return _Run(options, table, kept, parts).finish()
    except ClassifierError as error:
        raise Failure(f"{describe(error)}; {_KEPT}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise Failure(f"{error}; {_KEPT}") from error
    finally:
        table.close()


def _kept_columns(options: Score, table: Table) -> list[str]:
    kept = list(table.names if options.keep is None else options.keep)
    for flag, names in (("--text-column", [options.text_column]), ("--keep", kept)):
        missing = [name for name in names if name not in table.names]
        if missing:
            raise UsageError(f"{flag}: {options.input} has no column {missing[0]!r}; it has {', '.join(table.names)}")
    clash = [name for name in _new_columns(options) if name in kept]
    if clash:
        raise UsageError(
            f"{options.input} has a column {clash[0]!r} itself; give --prefix, as in --prefix predicted_, or --keep"
        )
    return kept


def _feature_columns(options: Score, table: Table) -> tuple[str, ...]:
    """The columns of what the release reads beside the text, which the server is asked for. Raises UsageError."""

    async def ask() -> list[str]:
        async with connect_async(**options.connection()) as classifier:
            return await classifier.feature_names()

    names = asyncio.run(ask())
    given = tuple(names) if options.feature_columns is None else options.feature_columns
    reads = f"the release reads {', '.join(names) if names else 'text alone'}"
    if len(given) != len(names):
        raise UsageError(f"--feature-columns names {len(given)} column(s); {reads}")
    if missing := [name for name in given if name not in table.names]:
        raise UsageError(
            f"{options.input} has no column {missing[0]!r}; {reads}: name its columns in this order by --feature-columns"
        )
    return given


def _new_columns(options: Score) -> dict[str, type]:
    return {options.prefix + name: kind for name, kind in FIELDS.items()}


def _manifest(options: Score, kept: list[str]) -> dict[str, Any]:
    """All that decides what is in a part."""
    status = options.input.stat()
    names = ("text_column", "model", "prefix", "part_rows")
    found = {"input": options.input.name, "input_bytes": status.st_size, "input_mtime_ns": status.st_mtime_ns, "columns": kept}
    given = {"feature_columns": list(options.feature_columns)} if options.feature_columns else {}
    return found | given | {name: getattr(options, name) for name in names}


class _Run:
    """From the first row without a part to the joined output."""

    def __init__(self, options: Score, table: Table, kept: list[str], parts: Parts) -> None:
        self.options, self.table, self.kept, self.parts = options, table, kept, parts
        parquet = options.output.suffix == ".parquet"
        self.schema = output_schema(table, kept, _new_columns(options)) if parquet else None
        self.summary, self.started = Summary(), time.perf_counter()
        self.beside: tuple[str, ...] = ()

    def finish(self) -> Summary:
        """Score what is missing, join all parts, remove them."""
        try:
            self.beside = _feature_columns(self.options, self.table)
        except UsageError:
            if not self.parts.done:
                self.parts.remove()
            raise
        columns = list(dict.fromkeys([*self.kept, self.options.text_column, *self.beside]))
        chunks = islice(self.table.read(columns, self.options.part_rows), self.parts.done, None)
        with tqdm(total=self.table.size, unit=self.table.unit, unit_scale=True, desc="score", delay=2) as bar:
            if self.options.ray is None:
                asyncio.run(self._score(chunks, bar))
            else:
                self._score_on_ray(chunks, bar)
        join_parts(self.parts.all(), self.options.output, [*self.kept, *_new_columns(self.options)], self.schema)
        self.parts.remove()
        self.summary.seconds = time.perf_counter() - self.started
        return self.summary

    async def _score(self, chunks: Iterator[Chunk], bar: Any) -> None:
        options = self.options
        async with connect_async(**options.connection()) as classifier:
            scorer = Scorer(classifier, batch=options.batch, in_flight=options.in_flight)
            scored = in_order(chunks, scorer, lambda chunk: prepare(chunk, options.text_column, self.beside))
            async with aclosing(scored):
                async for chunk, results in scored:
                    self._take(chunk, results, bar)

    def _score_on_ray(self, chunks: Iterator[Chunk], bar: Any) -> None:
        options = self.options
        try:
            from clients.ray_scoring import Job, results_from_ray
        except ImportError as error:
            raise UsageError(f"--ray needs Ray Data: pip install 'bert-on-triton[score]' ({error})") from error
        shared = {name: getattr(options, name) for name in ("text_column", "part_rows", "batch", "in_flight")}
        job = Job(
            input=options.input.resolve(),
            skip_parts=self.parts.done,
            connection=options.connection(),
            actors=options.ray_actors,
            feature_columns=self.beside,
            **shared,
        )
        with closing(results_from_ray(str(options.ray), job)) as results:
            for chunk in chunks:
                self._take(chunk, list(islice(results, len(chunk))), bar)

    def _take(self, chunk: Chunk, results: list[Result], bar: Any) -> None:
        """The next chunk is scored: write its part."""
        if self.options.strict:
            self._refuse_errors(results)
        new = {self.options.prefix + name: [getattr(row, name) for row in results] for name in FIELDS}
        write_part(self.parts.next_path(), {name: chunk.columns[name] for name in self.kept} | new, self.schema)
        self.parts.done += 1
        self.summary.add(results)
        bar.set_postfix_str(f"{self.summary.rows} rows, {self.summary.rows / (time.perf_counter() - self.started):.0f} rows/s")
        bar.update(self.table.position() - bar.n)

    def _refuse_errors(self, results: list[Result]) -> None:
        for number, row in enumerate(results, self.parts.done * self.options.part_rows):
            if row.error is not None:
                raise Failure(f"row {number}, counted from 0: {row.error}; without --strict it gets a row with this error")


if __name__ == "__main__":
    run_command(lambda: print(score(tyro.cli(Score, prog="python -m clients.score", description=__doc__))))
