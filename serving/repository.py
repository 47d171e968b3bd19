"""A deployed model repository: which versions are in it, which of them the ensembles serve, and how that is changed.

Only what is on the disk; telling a running server about it is `serving.deployment`. Every file is replaced by rename, so a
server that reads at any moment sees the old state or the new one.

`bert_classifier` is pinned to the version that serves, `bert_candidate` to the candidate, or, without one, to the same.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from contract.command import Failure, UsageError
from contract.files import read_json, sha256_of, write_bytes
from contract.probes import PROBES_FILE, Probes, read_probes
from contract.release import LABELS_FILE, MANIFEST_FILE, RELEASE_FILE
from contract.repository import locked, replace_configs
from contract.tensors import CANDIDATE, CLASSIFIER, ENGINE, ENSEMBLES, LOGITS, STEPS, TOKENIZER
from serving.features import take_features, taken_features

DEFAULT_REPOSITORY = Path("build/model_repository")

_CONFIG = "config.pbtxt"
_STAGING = ".staging-"


@dataclass(frozen=True)
class Repository:
    """The deployed repository at `path`."""

    path: Path

    def check(self) -> None:
        """Raise `UsageError` unless this is a deployed repository."""
        missing = [name for name in (*STEPS, *ENSEMBLES) if not (self.path / name / _CONFIG).is_file()]
        if missing:
            raise UsageError(
                f"{self.path} is not a deployed repository ({', '.join(missing)} missing); python -m builders.build renders one"
            )

    def versions(self) -> list[int]:
        """The version numbers that every step has, rising."""
        numbers = [{int(entry.name) for entry in (self.path / step).iterdir() if entry.name.isdecimal()} for step in STEPS]
        return sorted(set.intersection(*numbers))

    def pinned(self, ensemble: str = CLASSIFIER) -> int | None:
        """The version that an ensemble serves; None before the first release."""
        steps = self._read(self.path / ensemble / _CONFIG).ensemble_scheduling.step
        number = next((int(step.model_version) for step in steps), None)
        return number if number in self.versions() else None

    def candidate(self) -> int | None:
        """The version that a canary's share of the requests goes to, where it is another than the one that serves."""
        version = self.pinned(CANDIDATE)
        return None if version == self.pinned() else version

    def release(self, version: int) -> str:
        """The id of the release that is published as `version`."""
        return str(read_json(self.folder(version) / RELEASE_FILE)["release"])

    def feature_names(self, version: int) -> list[str]:
        """Names of the numbers that the release published as `version` reads beside each text."""
        return [str(name) for name in read_json(self.folder(version) / RELEASE_FILE).get("features", [])]

    def folder(self, version: int) -> Path:
        """Where the tokenizer of `version` lies, with the release's manifest and probes beside it."""
        return self.path / TOKENIZER / str(version)

    def manifest(self, version: int) -> dict[str, Any]:
        """The manifest of the release that is published as `version`."""
        manifest: dict[str, Any] = read_json(self.folder(version) / MANIFEST_FILE)
        return manifest

    def probes(self, version: int) -> Probes:
        """The release's own expected answers."""
        return read_probes(self.folder(version))

    def damaged(self, version: int) -> list[str]:
        """Files of a published version that are no longer what was published; empty when it is whole."""
        try:
            manifest = self.manifest(version)
        except UsageError:
            return [MANIFEST_FILE]
        files = {path: digest for path, digest in manifest["files"].items() if path.split("/")[0] in STEPS}
        places = {path: self.path / path.replace("/", f"/{version}/", 1) for path in files}
        return [path for path, place in places.items() if not place.is_file() or sha256_of(place) != files[path]]

    def step_config(self, step: str) -> dict[str, Any]:
        """The config of a step as its python model is given it; {} where no python model serves the step."""
        config = self._step(step)
        values: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
        return values if config.backend == "python" else {}

    def instances(self, step: str) -> int:
        """How many processes a version of a step has, where a python model serves it."""
        return sum(max(group.count, 1) for group in self._step(step).instance_group) or 1

    def features(self) -> int:
        """How many numbers every release of this repository reads beside each text."""
        return taken_features(self._read(self.path / ENGINE / _CONFIG))

    def take_features(self, count: int) -> None:
        """Make the models take so many, at their next load, for every kind of hardware; only before the first release."""
        for path in self.configs():
            self._edit(path, partial(take_features, count=count))

    def next_version(self, wanted: int | None = None) -> int:
        """The number of the next version: above every other. Raises `UsageError` for a `wanted` one that is not."""
        existing = [int(entry.name) for step in STEPS for entry in (self.path / step).iterdir() if entry.name.isdecimal()]
        newest = max(existing, default=0)
        if wanted is not None and wanted <= newest:
            raise UsageError(f"--version is {wanted}, and {self.path} has version {newest} already; numbers only rise")
        return wanted or newest + 1

    def copy_in(self, release: Path, version: int) -> Path:
        """Copy a release folder into the repository, laid out as it will lie there, but where no server looks.

        `admit` moves it into place; `sweep` deletes it.

        Raises:
            Failure: it cannot be copied (the disk is full).
        """
        copy = self.path / f"{_STAGING}{uuid.uuid4().hex[:8]}"
        try:
            for step in STEPS:
                shutil.copytree(release / step, copy / step / str(version))
                # An empty file of this name keeps the stub from writing bytecode, whose time stamp would make the next
                # `load` rebuild a version that has not changed.
                (copy / step / str(version) / "__pycache__").touch()
            for name in (MANIFEST_FILE, PROBES_FILE, LABELS_FILE):
                shutil.copyfile(release / name, copy / TOKENIZER / str(version) / name)
        except (OSError, shutil.Error) as error:
            self.sweep()
            raise Failure(f"cannot copy {release} into {self.path}: {error}; nothing was changed") from error
        return copy

    def sweep(self) -> None:
        """Delete copies that were not admitted, those of a publisher that was killed too. Only while holding the lock."""
        for copy in self.path.glob(f"{_STAGING}*"):
            shutil.rmtree(copy, ignore_errors=True)

    def admit(self, copy: Path, version: int) -> None:
        """Move a copy to where `version` belongs; nothing serves it yet."""
        try:
            for ensemble in ENSEMBLES:
                labels = (copy / TOKENIZER / str(version) / LABELS_FILE).read_bytes()
                write_bytes(self.path / ensemble / _labels_file(version), labels)
            for step in STEPS:
                (copy / step / str(version)).rename(self.path / step / str(version))
            self.sweep()
        except OSError as error:
            self.remove_version(version)
            raise Failure(f"cannot put version {version} into {self.path}: {error}; nothing was changed") from error

    def remove_version(self, version: int) -> None:
        """Delete a version that nothing serves."""
        for step in STEPS:
            shutil.rmtree(self.path / step / str(version), ignore_errors=True)
        for ensemble in ENSEMBLES:
            (self.path / ensemble / _labels_file(version)).unlink(missing_ok=True)

    def offer(self, versions: Sequence[int]) -> None:
        """Make the steps load exactly these versions at their next load, for every kind of hardware."""

        def specific(config: Any) -> None:
            config.version_policy.specific.versions[:] = sorted(versions)

        for step in STEPS:
            for path in [self.path / step / _CONFIG, *sorted((self.path / step / "configs").glob("*.pbtxt"))]:
                self._edit(path, specific)

    def lay_out(self, instances: int, threads: int) -> None:
        """Have the steps' next load start so many instances of the engine for a CPU, of so many threads each.

        The CPU engine finds its threads in its own engine.json; the container's ONNX Runtime must be told.
        """

        def count(config: Any) -> None:
            config.instance_group[0].count = instances
            if "intra_op_thread_count" in config.parameters:
                config.parameters["intra_op_thread_count"].string_value = str(threads)

        for name in ("cpu", "onnxruntime"):
            self._fit(self.path / ENGINE / "configs" / f"{name}.pbtxt", count)

    def count_labels(self, labels: int) -> None:
        """Have the container's ONNX Runtime know the number of labels: unlike others, it opens no graph whose own differs.

        https://github.com/triton-inference-server/server/issues/5834
        """

        def logits(config: Any) -> None:
            for output in config.output:
                if output.name == LOGITS:
                    output.dims[:] = [labels]

        self._fit(self.path / ENGINE / "configs" / "onnxruntime.pbtxt", logits)

    def offered(self) -> list[int]:
        """The versions that the steps load."""
        return list(self._read(self.path / STEPS[0] / _CONFIG).version_policy.specific.versions)

    def others(self) -> list[int]:
        """The versions that the steps load beside the one that serves."""
        pinned = self.pinned()
        return [version for version in self.offered() if version != pinned]

    def offer_whole(self) -> list[int]:
        """Before a server starts: stop offering versions whose files were damaged, which would keep it from starting.

        Returns what is offered no longer. The version that serves stays: without it there is nothing to start.
        """
        pinned = self.pinned()
        broken = [version for version in self.others() if version not in self.versions() or self.damaged(version)]
        if broken and pinned is not None:
            self.drop(broken, pinned)
        return broken

    def offer_alone(self) -> list[int]:
        """Before a server starts: offer the version that serves alone; returns what is offered no longer."""
        pinned, others = self.pinned(), self.others()
        if others and pinned is not None:
            self.drop(others, pinned)
        return others

    def drop(self, versions: Sequence[int], serving: int) -> None:
        """Offer these versions no longer; a candidate among them is none any more, and `serving` takes its place."""
        self.offer([version for version in self.offered() if version not in versions])
        if self.pinned(CANDIDATE) not in self.offered():
            self.pin(serving, CANDIDATE)

    def pin(self, version: int, ensemble: str = CLASSIFIER) -> None:
        """Make an ensemble serve `version`, with its labels, at its next load."""

        def pins(config: Any) -> None:
            for step in config.ensemble_scheduling.step:
                step.model_version = version
            for output in config.output:
                if output.name == LOGITS:
                    output.label_filename = _labels_file(version)

        self._edit(self.path / ensemble / _CONFIG, pins)

    def configs(self) -> dict[Path, bytes]:
        """Every config as it is now: with `restore`, the way back from any change."""
        paths = [path for model in (*STEPS, *ENSEMBLES) for path in sorted((self.path / model).rglob("*.pbtxt"))]
        return {path: path.read_bytes() for path in paths}

    def restore(self, configs: dict[Path, bytes]) -> None:
        """Put configs back that were changed since, those of the ensembles first: no step may lack what they are pinned to."""
        for path, text in reversed(configs.items()):
            if path.read_bytes() != text:
                replace_configs(self.path, {path: text})

    def _step(self, step: str) -> Any:
        named = self.path / step / "configs" / "cpu.pbtxt"
        return self._read(named if named.is_file() else self.path / step / _CONFIG)

    def _read(self, path: Path) -> Any:
        try:
            return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except (OSError, text_format.ParseError) as error:
            raise UsageError(f"cannot read {path}: {error}") from error

    def _fit(self, path: Path, change: Callable[[Any], None]) -> None:
        """`_edit` of a config that is there, where it changes anything."""
        if not path.is_file():
            return
        config = self._read(path)
        change(config)
        if config != self._read(path):
            self._edit(path, change)

    def _edit(self, path: Path, change: Callable[[Any], None]) -> None:
        config = self._read(path)
        change(config)
        replace_configs(self.path, {path: text_format.MessageToString(config).encode()})

    @contextmanager
    def locked(self, doing: str = "publishing to", *, wait_s: float = 0.0) -> Iterator[None]:
        """`contract.repository.locked` of this repository."""
        with locked(self.path, doing, wait_s=wait_s):
            yield


def _labels_file(version: int) -> str:
    return f"labels-{version}.txt"
