"""How far the build of a plan is, on a progress bar, and how Ctrl-C ends it: both by TensorRT's progress monitor."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


def progress_monitor(trt: Any, bar: Any) -> Any:
    """TensorRT's steps on a progress bar whose total grows as phases begin; `interrupted`, once set, stops at the next."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._lock = threading.Lock()  # phases run on several threads
            self._left: dict[str, int] = {}

        def _move(self, phase: str, more: int, done: int) -> None:
            with self._lock:
                self._left[phase] = self._left.get(phase, 0) + more - done
                bar.total += more
                bar.update(done)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._move(phase_name, num_steps, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._move(phase_name, 0, 1)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._move(phase_name, 0, self._left.get(phase_name, 0))

    return Monitor()


@contextlib.contextmanager
def noting_interrupts(monitor: Any) -> Iterator[None]:
    """Note SIGINT in `monitor` instead of raising: an exception must not fly through TensorRT's own frames."""
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled, and do not arrive
        yield
        return

    def note(*_: Any) -> None:
        monitor.interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
