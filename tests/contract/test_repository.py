"""`contract.repository`: configs are replaced all or none, and Triton sees that they were."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from contract.repository import replace_configs


def made(folder: Path) -> dict[Path, bytes]:
    """Three models with a config each."""
    paths = [folder / model / "config.pbtxt" for model in ("a", "b", "c")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"old")
    return dict.fromkeys(paths, b"old")


def test_configs_are_replaced_later_than_all_that_lies_beside_them(tmp_path: Path) -> None:
    configs = made(tmp_path)
    version, later = tmp_path / "b" / "1", time.time_ns() + 3_600_000_000_000
    version.mkdir()
    os.utime(version, ns=(later, later))
    replace_configs(tmp_path, dict.fromkeys(configs, b"new"))
    assert {path.read_bytes() for path in configs} == {b"new"}
    assert all(path.stat().st_mtime_ns > later for path in configs)
    assert len(list(tmp_path.rglob("*"))) == 7, "nothing is left beside them"


def test_what_a_full_disk_does_not_take_leaves_all_configs_as_they_were(tmp_path: Path) -> None:
    """The file size limit of the process stands in for a full disk."""
    configs = made(tmp_path)
    first, second, third = configs
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{third}'"):
            replace_configs(tmp_path, {first: b"new", second: b"new", third: b"n" * 20_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in configs} == configs
    assert len(list(tmp_path.rglob("*"))) == 6
