"""Files that are either whole or absent: written under a temporary name, then renamed. And their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from contract.command import Failure, UsageError


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """A temporary file to fill that replaces `path` in one rename when the block ends well, and vanishes when it does not.

    An OSError that names no file, as that of a full disk, or the temporary one, is made to name `path`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        given = temporary.stat().st_mode  # what the umask leaves of `mode`
        yield temporary
        temporary.chmod(given)  # safetensors renames a file of its own here, which its owner alone may read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno is None or error.filename not in {None, str(temporary)}:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` in one rename; a reader sees the old file or the new one, never a part."""
    with whole_file(path, mode=mode) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """`write_bytes` of indented JSON. NaN and infinities are refused (ValueError): they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(), mode=mode)


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """`write_bytes` of one JSON value a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, "".join(lines).encode())


def read_json(path: Path) -> Any:
    """The JSON value in `path`; a missing or broken file is a `UsageError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path} as JSON: {error}") from error


def read_json_lines(path: Path) -> Iterator[Any]:
    """The JSON values of `path`, one a line; a missing file or broken line is a `UsageError` that names it."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{path} line {number} is not JSON: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` by one rename when the block ends well, and vanishes when it does not.

    Raises `UsageError` when `path` exists already: nothing is ever overwritten.
    """
    if path.exists() or path.is_symlink():
        raise UsageError(f"the output {path} exists already; name another one, or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path.parent}: {error}") from error
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir()
        yield partial
        partial.rename(path)
    except BrokenPipeError:  # the reader of what is printed is gone: `run_command` ends by it
        raise
    except OSError as error:
        raise Failure(f"cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
