"""Scratch deployments of a search: a release published into an empty copy of a repository, set up, served, stopped.

Everything is done by the commands of `serving`, as an operator would. Configurations are edited as text: they were rendered by
protobuf, one field a line, and an edit that does not meet exactly the fields it expects is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.command import Failure, UsageError
from contract.files import write_bytes
from contract.tensors import BUCKET_LENGTHS, CLASSIFIER, ENGINE, STEPS, TOKENIZER
from loadtests.operator import STATE_FILE, Operator, read_operator
from loadtests.peers.process import running

START_TIMEOUT_S = 180.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a deployment a search may choose."""

    release: str
    """Folder of the release, which has engine and precision in it."""
    instances: int
    """Of the engine."""
    threads: int
    """Of each engine instance; 0 leaves the release's own."""
    batch: int = 0
    """Preferred batch size, in texts, that ends the wait for more; 0 for none."""
    delay_us: int = 0
    """For how long the batcher may hold a request back, in microseconds."""
    buckets: tuple[int, ...] = BUCKET_LENGTHS
    """Token counts a request is padded to."""

    def __str__(self) -> str:
        waits = f", waits {self.delay_us} us" + (f" for {self.batch} texts" if self.batch else "") if self.delay_us else ""
        padded = "" if self.buckets == BUCKET_LENGTHS else f", buckets {','.join(map(str, self.buckets))}"
        return f"{Path(self.release).name}: {self.instances} x {self.threads or 'default'} threads{waits}{padded}"


def publish_alone(release: Path, template: Path, target: Path) -> None:
    """Make `target` a repository with the models of `template` and `release` alone published in it.

    Raises:
        UsageError: `template` is no deployed repository.
        Failure: the release cannot be published; with the command's own message.
    """
    check_deployed(template)
    steps = {str(template / step) for step in STEPS}

    def left_out(folder: str, names: list[str]) -> set[str]:
        versions = {name for name in names if name.isdecimal()} if folder in steps else set()
        return versions | {name for name in names if name.startswith(".") and name != ".gitkeep"}

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(template, target, ignore=left_out)
    command = [sys.executable, "-m", "serving.releases", "publish", str(release), "--repository", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"cannot publish {release}: {done.stderr.strip()}")


def check_deployed(template: Path) -> None:
    """Raise UsageError for what `builders` did not render."""
    if not (template / CLASSIFIER).is_dir():
        raise UsageError(f"{template} is not a deployed repository; python -m builders.build renders one")


def template_hashes(template: Path) -> dict[str, str]:
    """The steps' configurations that a scratch deployment takes over, but for the versions that are served.

    Raises:
        UsageError: `template` is no deployed repository.
    """
    check_deployed(template)
    found = {}
    for path in sorted(path for step in STEPS for path in (template / step).rglob("*.pbtxt")):
        text = re.sub(r"^version_policy \{\n.*?^\}\n", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        found[str(path.relative_to(template))] = hashlib.sha256(text.encode()).hexdigest()
    return found


def apply(setting: Setting, repository: Path) -> None:
    """Write the setting into the configurations of a deployment that no server runs on. Raises `Failure` (see `_replace`)."""
    engine = [repository / ENGINE / "config.pbtxt", *sorted((repository / ENGINE / "configs").glob("*.pbtxt"))]
    threads = 0
    for path in engine:
        text = _replace(path, path.read_text(encoding="utf-8"), r"(?<=^instance_group \{\n  count: )\d+", setting.instances)
        text = re.sub(r"^  (preferred_batch_size|max_queue_delay_microseconds): \d+\n", "", text, flags=re.M)
        batching = f"\n  max_queue_delay_microseconds: {setting.delay_us}" if setting.delay_us else ""
        batching += f"\n  preferred_batch_size: {setting.batch}" if setting.batch else ""
        text = _replace(path, text, r"(?<=^dynamic_batching \{)", batching)
        if '"threads"' in text:
            text = _replace(path, text, _parameter("threads"), setting.threads)
            threads += 1
        write_bytes(path, text.encode())
    if setting.threads and not threads:
        raise Failure(f"no configuration of {repository / ENGINE} has a parameter threads; search with --threads 0")
    path = repository / TOKENIZER / "config.pbtxt"
    lengths = ",".join(map(str, setting.buckets))
    write_bytes(path, _replace(path, path.read_text(encoding="utf-8"), _parameter("bucket_lengths"), lengths).encode())


def _parameter(key: str) -> str:
    """The pattern of a parameter's value."""
    return rf'(?<=^  key: "{key}"\n  value {{\n    string_value: ")[^"]*(?=")'


def _replace(path: Path, text: str, pattern: str, value: object) -> str:
    """`text` with the one match of `pattern` replaced. Raises `Failure` when there is none, or more than one."""
    changed, count = re.subn(pattern, str(value), text, flags=re.M)
    if count != 1:
        raise Failure(f"{path} has {count} places for {value!r} where one was expected; render it again with builders.build")
    return changed


class NotStartedError(Failure):
    """A server did not come up."""


@contextlib.contextmanager
def served(repository: Path) -> Iterator[Operator]:
    """A server over the deployment for as long as the block lasts. Raises NotStartedError with its last words."""
    ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
    command = [sys.executable, "-m", "serving", "--repository", str(repository), *ports]
    state = repository / STATE_FILE
    state.unlink(missing_ok=True)
    with running(command, os.environ, repository.with_name(repository.name + ".serving.log"), Path.cwd()) as process:
        try:
            process.wait_until(state.exists, timeout_s=START_TIMEOUT_S)  # written once a text was answered
        except Failure as error:
            raise NotStartedError(f"the server over {repository} did not start: {process.last_lines()}") from error
        yield read_operator(repository)
