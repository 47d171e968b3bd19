"""`tests.training.chaos` in a process of its own, since it forks: 50 kills, and nothing torn."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from contract.command import UsageError
from tests.training.chaos import Chaos

ROOT = Path(__file__).resolve().parents[2]


def test_50_kills_at_random_moments_tear_nothing_and_change_no_bit() -> None:
    words = [sys.executable, "-m", "tests.training.chaos", "--kills", "50"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"^50 kills, (\d+) runs finished, 0 torn files, 0 results that differ; .* gained ([\d.]+) st", done.stdout
    )
    assert found, done.stdout
    assert int(found[1]) >= 2
    assert float(found[2]) > 0, "no killed process brought its run forward"


def test_fewer_than_one_kill_is_refused() -> None:
    with pytest.raises(UsageError, match="--kills is 0; it must be at least 1"):
        Chaos(kills=0)
