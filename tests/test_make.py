"""The Makefile's targets that need something say so before the long work begins."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_bench_names_what_it_needs_before_it_measures(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "bench-inputs", f"CHECKPOINT={tmp_path}", f"RELEASE={tmp_path / 'absent'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path / 'absent'} does not exist; make it first:" in done.stderr
    assert "python -m builders.build build/merged --output build/release" in done.stderr


def test_the_bench_ends_with_the_tables_and_the_page() -> None:
    (line,) = (line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if line.startswith("bench:"))
    needed = line.partition("##")[0].split()[1:]
    assert needed == ["bench-inputs", "bench-engines", "bench-peers", "tables", "report"]
