"""Publish a release into a deployed repository, under load if need be, and list what is there.

    python -m serving.releases publish build/release --repository build/model_repository
    python -m serving.releases list --repository build/model_repository

Publishing loads the new tokenizer and engine beside the old ones, then moves the ensemble's pins in one step: no request
fails, none is answered by a tokenizer of one release and an engine of another. What does not load, or does not answer as the
new release, is taken out again, with the old release serving all the while. Without a running server only the files change.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from clients import ClassifierError, connect
from contract.command import Failure, UsageError, run_command
from contract.release import read_manifest
from contract.tensors import CLASSIFIER, STEPS
from serving.control import ModelControl
from serving.repository import Repository
from serving.state import ServerState, read_state

DEFAULT_REPOSITORY = Path("build/model_repository")
PROBE_TEXT = "Which release is this?"


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Publish a release: the first one, or a replacement of the one that serves."""

    release: Annotated[Path, tyro.conf.Positional]
    """Release folder, of builders.build."""
    repository: Path = DEFAULT_REPOSITORY
    """Deployed repository. Its running server, if there is one, is told."""


@dataclass(frozen=True, kw_only=True)
class ListReleases:
    """List the published releases."""

    repository: Path = DEFAULT_REPOSITORY
    """Deployed repository."""


def publish(release: Path, repository: Repository) -> int:
    """Publish a release and return its version number (see the module docstring).

    Raises:
        UsageError: the release folder is damaged, the repository is none, or this release is the one that serves.
        Failure: another publish is running, or the server refused the release; the old one serves on.
    """
    manifest = read_manifest(release)
    repository.check()
    with repository.locked():
        previous, offered = repository.pinned(), repository.offered()
        if previous is not None and repository.release(previous) == manifest.release:
            raise UsageError(f"{manifest.release} is published already, as version {previous}")
        state = read_state(repository.path)
        started = time.perf_counter()
        version = repository.add_version(release)
        print(f"copied {manifest.release} in as version {version}")
        try:
            repository.offer([version] if previous is None or state is None else [previous, version])
            if state is not None:
                _load_steps(state, version)
            repository.pin(version)
            if state is not None:
                _flip(state, manifest.release)
        except BaseException:
            _take_out(repository, version, previous, offered, state)
            raise
    print(
        f"version {version} serves ({time.perf_counter() - started:.1f} s)"
        if state
        else f"version {version} is pinned; no server runs"
    )
    return version


def _load_steps(state: ServerState, version: int) -> None:
    with ModelControl(state) as control:
        for step in STEPS:
            started = time.perf_counter()
            control.load(step)
            if not control.is_ready(step, version):
                raise Failure(f"{step} {version} is not ready after its load; see the server's log")
            print(f"loaded {step} {version} ({time.perf_counter() - started:.1f} s)")


def _flip(state: ServerState, release: str) -> None:
    """Load the ensemble with its new pins and have it answer as `release`."""
    with ModelControl(state) as control:
        control.load(CLASSIFIER)
    try:
        with connect(state.grpc_url) as classifier:
            answered = classifier.classify([PROBE_TEXT])[0].release
    except ClassifierError as error:
        raise Failure(f"{release} does not answer: {error}") from error
    if answered != release:
        raise Failure(f"after the flip {answered} answers, not {release}")


def _take_out(
    repository: Repository, version: int, previous: int | None, offered: list[int], state: ServerState | None
) -> None:
    """Undo a publish: pins as before and proved, then the version withdrawn from the steps and deleted."""
    if previous is not None:
        repository.pin(previous)
        if state is not None:
            _flip(state, repository.release(previous))
    repository.offer(offered)
    if state is not None and previous is not None:
        with ModelControl(state) as control:
            for step in STEPS:
                control.load(step)
    repository.remove_version(version)
    print(f"took version {version} out again; {f'version {previous} serves on' if previous else 'nothing is published'}")


def list_releases(repository: Repository) -> None:
    """Print one line a version."""
    repository.check()
    versions, pinned = repository.versions(), repository.pinned()
    state = read_state(repository.path)
    if not versions:
        print(f"no release is published in {repository.path}")
    for version in versions:
        note = ("  <- serves" if state else "  <- pinned; no server runs") if version == pinned else ""
        print(f"{version:>4}  {repository.release(version)}{note}")


def main(command: Publish | ListReleases) -> None:
    """Run a subcommand."""
    if isinstance(command, Publish):
        publish(command.release, Repository(command.repository))
    else:
        list_releases(Repository(command.repository))


Command = Annotated[Publish, tyro.conf.subcommand("publish")] | Annotated[ListReleases, tyro.conf.subcommand("list")]

if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Command, prog="python -m serving.releases", description=__doc__)))
