"""A virtual environment for each peer, with every package pinned: what one needs never meets what another needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.command import Failure
from contract.files import write_bytes

REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALLED = "installed.txt"
"""Copy of the requirements that were installed, written last: without it, or with another, an environment is made again."""


def interpreter(name: str, folder: Path) -> Path:
    """The Python of environment `name` below `folder`, made and filled if it is not there yet.

    Raises:
        Failure: a package cannot be installed; with pip's last line.
    """
    wanted = (REQUIREMENTS / f"{name}.txt").read_bytes()
    environment = folder.resolve() / name
    python, stamp = environment / "bin" / "python", environment / INSTALLED
    if stamp.exists() and stamp.read_bytes() == wanted:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(environment)], name)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]  # the list is whole
    _call([*install, str(REQUIREMENTS / f"{name}.txt")], name)
    write_bytes(stamp, wanted)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Versions of `packages` as that environment has them."""
    code = "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{python} lacks one of {', '.join(packages)}: {done.stderr.strip()[-300:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _call(command: Sequence[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Failure(f"the environment of {name} cannot be made: {' '.join(command[:5])} ...: {reason}")
