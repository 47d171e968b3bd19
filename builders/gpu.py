"""The GPU at hand as NVIDIA's own tool names it, for a manifest and for the check before a server loads a plan."""

from __future__ import annotations

import shutil
import subprocess

QUERY = ("name", "compute_cap", "driver_version")
_NAMES = ("gpu", "compute_capability", "driver")
TIMEOUT_S = 30


def describe_gpu(command: str = "nvidia-smi") -> dict[str, str]:
    """{"gpu", "compute_capability", "driver"} of the first GPU; empty where there is none."""
    if not shutil.which(command):
        return {}
    arguments = [command, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(arguments, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (subprocess.SubprocessError, OSError):  # a driver without a GPU, or a container without access to one
        return {}
    return parse_gpu(found)


def parse_gpu(listing: str) -> dict[str, str]:
    """The first row of nvidia-smi's csv; empty where it is no such row."""
    first = [part.strip() for part in listing.partition("\n")[0].split(",")]
    return dict(zip(_NAMES, first, strict=True)) if len(first) == len(_NAMES) else {}
