"""Rows of files larger than memory: read in chunks, written as parts, parts joined. CSV, JSON lines and Parquet.

CSV and JSON lines are read with the standard library, which leaves every cell as it was written ("007" stays "007"). A row that
cannot be read is still a row: its cells are empty and `problems` says why.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import whole_file

CSV, JSON_LINES, PARQUET = "csv", "jsonl", "parquet"
_SUFFIXES = {".csv": CSV, ".csv.gz": CSV, ".jsonl": JSON_LINES, ".jsonl.gz": JSON_LINES, ".parquet": PARQUET}


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows."""

    columns: dict[str, Any]
    """Name -> cells: a list of str or None, or an Arrow array of a Parquet file."""
    problems: list[str]
    """One a row: "", or why the row could not be read."""

    def __len__(self) -> int:
        return len(self.problems)

    def values(self, name: str) -> list[Any]:
        """The cells of a column as Python values."""
        cells = self.columns[name]
        values: list[Any] = cells if isinstance(cells, list) else cells.to_pylist()
        return values


@dataclass(frozen=True)
class Table:
    """An input file, opened for one reading."""

    names: list[str]
    """Its columns."""
    size: int
    """Rows of a Parquet file, bytes of any other."""
    unit: str
    """"row" or "B": what `size` and `position` count."""
    position: Callable[[], int]
    """How far the reading has come."""
    read: Callable[[Sequence[str], int], Iterator[Chunk]]
    """(columns, rows): chunks of so many rows, the last one of what is left."""
    close: Callable[[], None]
    """Give the file back."""
    schema: Any = None
    """Arrow schema of a Parquet file; None: all columns are text."""


def format_of(path: Path, flag: str) -> str:
    """`CSV`, `JSON_LINES` or `PARQUET` by the name; raises UsageError for another one."""
    for suffix, kind in _SUFFIXES.items():
        if path.name.endswith(suffix):
            return kind
    raise UsageError(f"{flag} is {path}; its name must end in one of {', '.join(_SUFFIXES)}")


def arrow() -> Any:
    """The module pyarrow; a UsageError says what to install when it is absent."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"Parquet needs pyarrow: pip install 'bert-on-triton[score]' ({error})") from error
    return pyarrow


def open_table(path: Path) -> Table:
    """The rows of `path`. Raises UsageError for a file that cannot be opened or has no header."""
    kind = format_of(path, "the input")
    try:
        return _open_parquet(path) if kind == PARQUET else _open_text(path, kind)
    except (OSError, EOFError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _open_parquet(path: Path) -> Table:
    pyarrow = arrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{path} is no Parquet file: {error}") from error
    done = 0

    def read(names: Sequence[str], rows: int) -> Iterator[Chunk]:
        nonlocal done
        batches = file.iter_batches(batch_size=rows, columns=list(names))
        for table in _regroup(pyarrow, batches, rows):
            done += len(table)
            yield Chunk({name: table.column(name) for name in names}, [""] * len(table))

    schema = file.schema_arrow
    return Table(schema.names, file.metadata.num_rows, "row", lambda: done, read, file.close, schema)


def _regroup(pyarrow: Any, batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """Tables of `rows` rows each, whatever the batches' sizes."""
    held = None
    for batch in batches:
        table = pyarrow.Table.from_batches([batch])
        held = table if held is None else pyarrow.concat_tables([held, table])
        while len(held) >= rows:
            yield held.slice(0, rows)
            held = held.slice(rows)
    if held is not None and len(held):
        yield held


def _open_text(path: Path, kind: str) -> Table:
    raw = path.open("rb")
    stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    # A byte that is no UTF-8 must not end the run: it becomes a surrogate, which marks the text as bad.
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def close() -> None:
        lines.close()
        raw.close()  # gzip leaves it open

    try:
        names, rows = _csv_rows(lines, path) if kind == CSV else _json_rows(lines, path)
    except BaseException:
        close()
        raise

    def read(wanted: Sequence[str], count: int) -> Iterator[Chunk]:
        chunk = _Builder(wanted)
        for row, problem in rows:
            chunk.add(row, problem)
            if len(chunk.problems) == count:
                yield chunk.build()
                chunk = _Builder(wanted)
        if chunk.problems:
            yield chunk.build()

    return Table(names, path.stat().st_size, "B", raw.tell, read, close)


class _Builder:
    """A chunk that grows."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns: dict[str, list[str | None]] = {name: [] for name in names}
        self.problems: list[str] = []

    def add(self, row: dict[str, str | None], problem: str) -> None:
        for name, cells in self.columns.items():
            cells.append(row.get(name))
        self.problems.append(problem)

    def build(self) -> Chunk:
        return Chunk(dict(self.columns), self.problems)


Row = tuple[dict[str, str | None], str]


def _csv_rows(lines: io.TextIOWrapper, path: Path) -> tuple[list[str], Iterator[Row]]:
    csv.field_size_limit(2**31 - 1)  # 128 KiB otherwise; texts over the server's limit get an error of their own
    reader = csv.reader(lines)
    names = next(reader, [])
    if not names or len(set(names)) != len(names):
        raise UsageError(f"{path} needs a first line of different column names; it has {names}")

    def rows() -> Iterator[Row]:
        for cells in reader:
            if not cells:
                continue  # an empty line is no row
            problem = (
                "" if len(cells) == len(names) else f"line {reader.line_num} has {len(cells)} cells, the header {len(names)}"
            )
            yield dict(zip(names, cells, strict=False)), problem

    return names, rows()


def _json_rows(lines: io.TextIOWrapper, path: Path) -> tuple[list[str], Iterator[Row]]:
    first = lines.readline()
    row, problem = _json_row(first, 1)
    if problem or not row:
        raise UsageError(f"{path} needs an object in its first line, whose keys are the columns: {problem or 'it has none'}")
    names = list(row)

    def rows() -> Iterator[Row]:
        yield row, ""
        for number, line in enumerate(lines, 2):
            if line.strip():
                yield _json_row(line, number)

    return names, rows()


def _json_row(line: str, number: int) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # nested beyond what the parser follows
        return {}, f"line {number} is not JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"line {number} is a JSON {type(value).__name__}, not an object"
    return {key: _json_cell(cell) for key, cell in value.items()}, ""


def _json_cell(value: Any) -> str | None:
    """Strings as they are, everything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_part(path: Path, columns: dict[str, Any], schema: Any) -> None:
    """A part of the output: Parquet with `schema`, or CSV without a header when it is None."""
    with whole_file(path) as temporary:
        if schema is not None:
            pyarrow = arrow()
            arrays = [_arrow_column(pyarrow, columns[field.name], field.type) for field in schema]
            pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), temporary)
        else:
            cells = [cells if isinstance(cells, list) else cells.to_pylist() for cells in columns.values()]
            with temporary.open("w", encoding="utf-8", newline="") as file:
                # The writer's own "\\r\\n" ends the lines: with "\\n" it would leave a "\\r" inside a cell unquoted.
                csv.writer(file).writerows([_csv_cell(cell) for cell in row] for row in zip(*cells, strict=True))


def join_parts(parts: Sequence[Path], output: Path, names: Sequence[str], schema: Any) -> None:
    """One file of all parts, without holding more than one of them."""
    with whole_file(output) as temporary:
        if schema is not None:
            pyarrow = arrow()
            with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
                for part in parts:
                    writer.write_table(pyarrow.parquet.read_table(part, schema=schema))
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(names)
            with temporary.open("ab") as target:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target)


def output_schema(table: Table, kept: Sequence[str], added: dict[str, type]) -> Any:
    """Arrow schema of the kept columns with the added ones behind them."""
    pyarrow = arrow()
    types = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    old = [(name, pyarrow.string() if table.schema is None else table.schema.field(name).type) for name in kept]
    return pyarrow.schema(old + [(name, types[kind]) for name, kind in added.items()])


def _arrow_column(pyarrow: Any, cells: Any, kind: Any) -> Any:
    if not isinstance(cells, list):
        return cells
    return pyarrow.array([_clean(cell) for cell in cells], kind)


def _csv_cell(value: Any) -> Any:
    """What the csv module writes: text, numbers, nothing for None; a nested value of Parquet as JSON."""
    if value is None or isinstance(value, str | int | float):
        return _clean(value)
    return str(value) if not isinstance(value, list | dict) else json.dumps(value, default=str, ensure_ascii=False)


def _clean(value: Any) -> Any:
    """Text that can be written as UTF-8: what was none becomes U+FFFD."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return value
