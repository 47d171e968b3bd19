"""A disk that fills at any write of a publish: what was there is there again. Other ways of failing: test_releases.py."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contract.command import Failure
from contract.files import whole_file
from contract.tensors import ENGINE
from serving.publish import publish
from serving.rehearsal import rehearse
from tests.served import deployed


def test_a_disk_that_is_full_from_any_write_on_leaves_what_was_there(
    release: Path, second_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = deployed(tmp_path, release)
    before, copy = repository.configs(), repository.path / ENGINE / "2"
    labels = sorted(repository.path.glob("*/labels-*.txt"))
    written, rehearsed = 0, functools.cache(lambda: rehearse(repository, 1))

    @contextmanager
    def whole(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
        nonlocal written
        written += 1
        if written > room and copy.exists():  # what was copied in is what filled it
            raise OSError(28, "No space left on device")
        with whole_file(path, mode=mode) as temporary:
            yield temporary

    monkeypatch.setattr("serving.publish.rehearse", lambda *_, **__: rehearsed())
    for writer in ("contract.files.whole_file", "contract.repository.whole_file"):
        monkeypatch.setattr(writer, whole)
    for room in range(100):  # noqa: B007 - read by `whole`
        written = 0
        try:
            assert publish(second_release, repository) == 2
            break
        except Failure as error:
            assert "No space left on device" in str(error)
        assert (repository.configs(), repository.versions()) == (before, [1])
        assert sorted(repository.path.glob("*/labels-*.txt")) == labels
    assert room > 8
    assert (repository.pinned(), repository.versions()) == (2, [1, 2])
