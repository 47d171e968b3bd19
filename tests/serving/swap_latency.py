"""What a swap costs a caller: latency at 40 % of the capacity, steady, around flips, and while releases load."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.release import read_manifest
from serving.switch import promote, retire, rollback
from tests.serving.traffic import Traffic

if TYPE_CHECKING:
    from tests.serving.chaos_swap import Chaos

ROOT = Path(__file__).resolve().parents[2]
FLIPS = 40  # of which latency is taken: at some 20 requests a second the 99th percentile then is the eighth of 800


def sequential_p50_ms(traffic: Traffic, seconds: float) -> float:
    """Median latency with one request in flight."""
    started = time.monotonic()
    with traffic.running(closed=1) as answers:
        time.sleep(seconds)
    return float(1000 * np.median(answers.within((started, np.inf))))


def measure_latency(chaos: Chaos) -> dict[str, Any]:
    """Capacity, then p99 at 40 % of it: steady, within a second of a flip, and while a release loads."""
    traffic, answers = chaos.traffic, chaos.traffic.answers
    before = len(answers.latencies)
    with traffic.running(closed=8):
        time.sleep(5)
    capacity = (len(answers.latencies) - before) / 5
    chaos.publish_next()
    with traffic.running(rate=0.4 * capacity, workers=16):
        time.sleep(1)
        quiet, flips = _flip_windows(chaos, FLIPS)
        loads = [_loading_window(chaos) for _ in range(3)]
    steady, near_flips, loading = (answers.p99_ms(*windows) for windows in (quiet, flips, loads))
    return {
        "capacity_per_s": capacity,
        "rate_per_s": 0.4 * capacity,
        "steady_p99_ms": steady,
        "flip_p99_ms": near_flips,
        "flip_ratio": near_flips / steady,
        "loading_p99_ms": loading,
        "loading_ratio": loading / steady,
        "loading_s": float(np.mean([end - start for start, end in loads])),
    }


def _flip_windows(chaos: Chaos, count: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Seconds without a flip and seconds from one on, in turn: slow moments of the machine fall on both alike."""
    quiet: list[tuple[float, float]] = []
    flips: list[tuple[float, float]] = []
    for number in range(count):
        time.sleep(0.5)
        for windows in (quiet, flips):
            start = time.monotonic()
            if windows is flips and number % 2:
                promote(chaos.repository, max(chaos.repository.offered()))
            elif windows is flips:
                rollback(chaos.repository)
            time.sleep(max(0.0, start + 1 - time.monotonic()))
            windows.append((start, start + 1))
    if count % 2:
        promote(chaos.repository, max(chaos.repository.offered()))
    return quiet, flips


def _loading_window(chaos: Chaos) -> tuple[float, float]:
    serving = chaos.repository.release(chaos.repository.pinned() or 0)
    folder = next(folder for folder in chaos.good if read_manifest(folder).release != serving)
    command = [sys.executable, "-m", "serving.releases", "publish", str(folder), "--repository", str(chaos.repository.path)]
    start = time.monotonic()
    subprocess.run(
        [*command, "--accept-disagreement", "--max-slowdown", "1000"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
    )
    end = time.monotonic()
    retire(chaos.repository, keep=0)
    time.sleep(2)
    return start, end
