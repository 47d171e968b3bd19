"""The whole state of an interrupted training run, in one file that is either the old one or the new one.

    OUTPUT.training/state.safetensors    tensors, and everything else as JSON in the file's header

Never pickle. What a run is (options, data) lies in the header too, so that only the same run can be continued.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from contract.command import Failure, UsageError
from contract.files import whole_file

STATE_FILE = "state.safetensors"
_LOCK_FILE = "lock"
_HEADER = "state"


def state_folder(output: Path) -> Path:
    """Where the run that will write `output` keeps its state until it is done."""
    return output.with_name(output.name + ".training")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make the folder of a run's state, and keep every other process from it until the block ends or this process dies.

    Raises:
        UsageError: another process has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK_FILE).open("w")
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process trains in {folder}; wait for it, or name another output") from error
        yield


def save_state(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Replace `path` in one rename. Raises `Failure` when the disk does not take it; the old state is then intact."""
    header = {_HEADER: json.dumps(values, allow_nan=False)}
    try:
        with whole_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, header)
    except (OSError, SafetensorError) as error:
        kept = "the state saved before it is intact" if path.exists() else "none was saved before it"
        raise Failure(f"cannot save the run to {path}: {error}; {kept}. Make room, and continue with --resume") from error


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote. Raises `UsageError` when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[_HEADER])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a training state ({error}); remove {path.parent} and train again") from error


class Interrupted(BaseException):
    """SIGTERM or SIGINT came; the state is on the disk. Not an Exception, so that nothing takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """Turns SIGTERM and SIGINT into `Interrupted`: at once, or, inside `held`, when the step that runs is done."""

    def __init__(self) -> None:
        self.requested = 0
        self._held = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[StopSignals]:
        """Handle the signals inside the block. Only the main thread can."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only note the signal, for `requested`, inside the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._held or self.requested:  # a second signal does not wait for the step
            raise Interrupted(number)
        self.requested = number
