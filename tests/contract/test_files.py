"""`contract.files`: whole or absent, whatever goes wrong in between."""

from __future__ import annotations

import hashlib
import math
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure, UsageError
from contract.files import (
    new_folder,
    read_json,
    read_json_lines,
    sha256_of,
    whole_file,
    write_bytes,
    write_json,
    write_json_lines,
)


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"first, and longer")
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_file_has_the_mode_asked_for(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "file", b"x", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_reader_sees_the_old_file_or_the_new_one_and_never_a_part(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 200_000
    write_bytes(path, b"a" * size)
    done = threading.Event()
    seen: set[tuple[int, bytes]] = set()

    def read() -> None:
        last = False
        while not last:  # once at least, however late this thread comes to run
            last = done.is_set()
            content = path.read_bytes()
            seen.add((len(content), bytes(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        write_bytes(path, (b"b" if number % 2 else b"a") * size)
    done.set()
    reader.join()
    assert seen
    assert seen <= {(size, b"a"), (size, b"b")}


def test_a_write_that_fails_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    """The file size limit of the process stands in for a full disk: it too stops a write in its middle."""
    path = tmp_path / "file"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            write_bytes(path, b"n" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_filled_by_another_library_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with whole_file(path) as temporary:
        assert temporary.parent == path.parent, "a rename is atomic on one filesystem only"
        temporary.write_bytes(b"first part, ")
        with temporary.open("ab") as file:
            file.write(b"second part")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"first part, second part"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_its_writer_replaces_by_a_rename_of_its_own_has_the_mode_asked_for(tmp_path: Path) -> None:
    """As safetensors does, whose own temporary file nobody else may read."""
    before = os.umask(0o022)
    try:
        with whole_file(tmp_path / "file") as temporary:
            (tmp_path / "own").write_bytes(b"content")
            (tmp_path / "own").chmod(0o600)
            (tmp_path / "own").rename(temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_a_file_whose_block_fails_stays_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}/folder'$"):
        write_bytes(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {"loss": -math.inf}, {"a": [object()]}])
def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": True})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    with pytest.raises((ValueError, TypeError)):
        write_json_lines(path, [1, value])
    assert read_json(path) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_reads_well(tmp_path: Path) -> None:
    value = {"text": "東京 🙂\n", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json") == value
    content = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert content.startswith('{\n  "text": "東京 🙂\\n",')
    assert content.endswith("}\n")


def test_json_lines_come_back_one_a_line(tmp_path: Path) -> None:
    rows = [{"text": "two\nlines\u2028"}, [], "東京"]
    write_json_lines(tmp_path / "rows.jsonl", iter(rows))
    assert list(read_json_lines(tmp_path / "rows.jsonl")) == rows
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b"\xff\xfe"], ids=["empty", "cut off", "quotes", "encoding"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*file\.json as JSON"):
        read_json(tmp_path / "file.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.json as JSON: .*No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"cannot read .*none\.jsonl: .*No such file"):
        list(read_json_lines(tmp_path / "none.jsonl"))


def test_a_broken_line_is_named_by_its_number_after_the_lines_before_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n2\n{"b": \n4\n')
    rows = read_json_lines(tmp_path / "rows.jsonl")
    assert [next(rows), next(rows)] == [{"a": 1}, 2]
    with pytest.raises(UsageError, match=r"rows\.jsonl line 3 is not JSON"):
        next(rows)


def test_lines_that_are_not_utf_8_are_a_usage_error_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"text": "café"}\n'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"cannot read .*rows\.jsonl: 'utf-8' codec"):
        list(read_json_lines(tmp_path / "rows.jsonl"))


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # longer than one read
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    (tmp_path / "empty").touch()
    assert sha256_of(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_new_folder_appears_whole_at_the_end_of_the_block_with_its_parents(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "output"
    with new_folder(output) as folder:
        (folder / "file").write_text("content")
        assert not output.exists()
        assert folder.parent == output.parent, "a rename is atomic on one filesystem only"
    assert (output / "file").read_text() == "content"
    assert list(output.parent.iterdir()) == [output]


def test_a_new_folder_that_cannot_be_made_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *given: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(Failure, match=r"cannot write .*output: .*No space left on device"):
        patch.setattr(os, "mkdir", full)
        with new_folder(tmp_path / "output"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError("a bug"), UsageError("a call"), KeyboardInterrupt(), BrokenPipeError()])
def test_a_new_folder_vanishes_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "output") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_operating_system_is_a_failure_that_names_the_output(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(Failure, match=f"cannot write {output}: .*No space left on device"), new_folder(output):
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("folder", "file", "dangling"):
        with pytest.raises(UsageError, match=f"{name} exists already; name another one"), new_folder(tmp_path / name):
            pytest.fail("the block ran")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make the folder"), new_folder(tmp_path / "file" / "output"):
        pytest.fail("the block ran")


def test_of_two_that_fill_the_same_output_the_first_stays(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot write"), new_folder(tmp_path / "output") as slow:
        (slow / "by").write_text("slow")
        with new_folder(tmp_path / "output") as fast:
            (fast / "by").write_text("fast")
    assert (tmp_path / "output" / "by").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
