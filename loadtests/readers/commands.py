"""Tables that another package makes of its own measurement files: its command is run, nothing is written twice."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from contract.command import UsageError

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def table_of(*arguments: str) -> str:
    """What `python -m ARGUMENTS` prints, called from the project's folder. Raises UsageError with its message when it fails."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise UsageError(
            f"python -m {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1:] or 'it said nothing'}"
        )
    return done.stdout.strip()
