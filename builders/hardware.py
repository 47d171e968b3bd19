"""What this machine's processor can compute natively, and how a manifest names it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")

MATTERING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "amx_fp16")
"""Flags on which speed and rounding of an engine depend."""


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The processor's flags as Linux names them; empty where there is no such list (not Linux, not x86)."""
    if not cpuinfo.exists():
        return frozenset()
    found = re.search(r"^flags\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def has_bf16(flags: frozenset[str]) -> bool:
    """Whether bf16 products are computed by the processor, not emulated."""
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def describe_cpu(cpuinfo: Path = CPUINFO) -> dict[str, Any]:
    """For a manifest: {"cpu", "flags", "cores"}."""
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = cpu_flags(cpuinfo)
    return {
        "cpu": model[1] if model else platform.machine(),
        "flags": [flag for flag in MATTERING if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
    }
