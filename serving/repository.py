"""A deployed model repository: which versions are in it, which of them the ensemble serves, and how that is changed.

Only what is on the disk; telling a running server about it is `serving.control`. Every file is replaced by rename, so a
server that reads at any moment sees the old state or the new one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from contract.command import Failure, UsageError
from contract.files import read_json, write_bytes
from contract.release import LABELS_FILE, RELEASE_FILE
from contract.tensors import CLASSIFIER, LOGITS, STEPS, TOKENIZER

_CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Repository:
    """The deployed repository at `path`."""

    path: Path

    def check(self) -> None:
        """Raise `UsageError` unless this is a deployed repository."""
        missing = [name for name in (*STEPS, CLASSIFIER) if not (self.path / name / _CONFIG).is_file()]
        if missing:
            raise UsageError(
                f"{self.path} is not a deployed repository ({', '.join(missing)} missing); python -m builders.build renders one"
            )

    def versions(self) -> list[int]:
        """The version numbers that every step has, rising."""
        numbers = [{int(entry.name) for entry in (self.path / step).iterdir() if entry.name.isdecimal()} for step in STEPS]
        return sorted(set.intersection(*numbers))

    def pinned(self) -> int | None:
        """The version that the ensemble serves; None before the first release."""
        steps = self._read(self.path / CLASSIFIER / _CONFIG).ensemble_scheduling.step
        number = int(steps[0].model_version)
        return number if number in self.versions() else None

    def release(self, version: int) -> str:
        """The id of the release that is published as `version`."""
        return str(read_json(self.path / TOKENIZER / str(version) / RELEASE_FILE)["release"])

    def add_version(self, release: Path) -> int:
        """Copy a release folder in as the next version of each step, and its labels; nothing serves it yet."""
        existing = [int(entry.name) for step in STEPS for entry in (self.path / step).iterdir() if entry.name.isdecimal()]
        version = max(existing, default=0) + 1
        staging = self.path / f".staging-{uuid.uuid4().hex[:8]}"
        try:
            for step in STEPS:
                shutil.copytree(release / step, staging / step)
                # An empty file of this name keeps the stub from writing bytecode, whose time stamp would make the next
                # `load` rebuild a version that has not changed.
                (staging / step / "__pycache__").touch()
            for step in STEPS:
                (staging / step).rename(self.path / step / str(version))
            write_bytes(self.path / CLASSIFIER / f"labels-{version}.txt", (release / LABELS_FILE).read_bytes())
        except OSError as error:
            self.remove_version(version)
            raise Failure(f"cannot copy {release} into {self.path}: {error}; nothing was changed") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return version

    def remove_version(self, version: int) -> None:
        """Delete a version that nothing serves."""
        for step in STEPS:
            shutil.rmtree(self.path / step / str(version), ignore_errors=True)
        (self.path / CLASSIFIER / f"labels-{version}.txt").unlink(missing_ok=True)

    def offer(self, versions: Sequence[int]) -> None:
        """Make the steps load exactly these versions at their next load, for every kind of hardware."""

        def specific(config: Any) -> None:
            config.version_policy.specific.versions[:] = sorted(versions)

        for step in STEPS:
            for path in [self.path / step / _CONFIG, *sorted((self.path / step / "configs").glob("*.pbtxt"))]:
                self._edit(path, specific)

    def offered(self) -> list[int]:
        """The versions that the steps load."""
        return list(self._read(self.path / STEPS[0] / _CONFIG).version_policy.specific.versions)

    def pin(self, version: int) -> None:
        """Make the ensemble serve `version`, with its labels, at its next load."""

        def pins(config: Any) -> None:
            for step in config.ensemble_scheduling.step:
                step.model_version = version
            for output in config.output:
                if output.name == LOGITS:
                    output.label_filename = f"labels-{version}.txt"

        self._edit(self.path / CLASSIFIER / _CONFIG, pins)

    def _read(self, path: Path) -> Any:
        try:
            return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, text_format.ParseError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error

    def _edit(self, path: Path, change: Callable[[Any], None]) -> None:
        config = self._read(path)
        change(config)
        model = self.path / path.relative_to(self.path).parts[0]
        newest = max(max(entry.stat().st_mtime_ns, entry.stat().st_ctime_ns) for entry in (model, *model.rglob("*")))
        write_bytes(path, text_format.MessageToString(config).encode())
        # Triton does nothing, and says 200, unless a time stamp in the model's folder has grown. The file system's clock
        # ticks in milliseconds, so two quick changes can bear the same time: make sure that this one is later.
        stamp = max(time.time_ns(), newest + 1_000_000)
        os.utime(path, ns=(stamp, stamp))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository against other publishers. Raises `Failure` when one is at work."""
        descriptor = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise Failure(f"another process is publishing to {self.path}; wait until it is done") from error
        finally:
            os.close(descriptor)
