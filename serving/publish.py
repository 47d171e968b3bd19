"""Publish a release: bring it in beside the one that serves, prove it, and only then move the traffic.

    copy -> rehearse -> load -> warm -> replay -> compare -> (shadow) -> promote

Until the last arrow no client's request has met the new release. Whatever fails on the way, a full disk, a refusal of the
server, Ctrl-C, takes it out again, and the old release serves all the while.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.command import Failure, UsageError
from contract.features import check_same_features
from contract.probes import read_probes
from contract.release import Manifest, read_manifest
from contract.tensors import CANDIDATE, STEPS
from serving.deployment import Deployment
from serving.gate import Gate, check_answers, check_comparison, compare, settle, warm_up
from serving.rehearsal import rehearse
from serving.release_log import ReleaseLog
from serving.repository import Repository
from serving.shadow import Shadow, check_shadow

DEFAULT_GATE = Gate()


def publish(
    release: Path,
    repository: Repository,
    *,
    gate: Gate = DEFAULT_GATE,
    shadow: Shadow | None = None,
    stage: bool = False,
    version: int | None = None,
    url: str | None = None,
) -> int:
    """Publish a release and return its version number (see the module docstring).

    Args:
        shadow: live traffic to replay on both releases before the traffic moves.
        stage: stop before the traffic moves; the release stays loaded as the candidate.
        version: the number to publish it as; the next one when left out.
        url: HTTP host:port of the server, when it is not as `.server.json` says.

    Raises:
        UsageError: the release folder is damaged, the repository is none, the number is an old one, or this release serves.
        Failure: another publish is running, or the release does not pass; the old one serves on. Or too little traffic came to
            shadow: then it is the candidate.
    """
    manifest = read_manifest(release)
    repository.check()
    with repository.locked():
        version = repository.next_version(version)
        log, deployment = ReleaseLog(repository.path), Deployment.find(repository, url)
        _check_new(manifest, repository, stage=stage)
        deployment.wait_until_up()
        with _undone_on_failure(deployment, log, manifest.release, version):
            _bring_in(release, manifest, deployment, version, log)
            _load_beside(deployment, version, log)
            undecided = ""
            if deployment.state is not None:
                undecided = _prove(deployment.state.http_url, version, gate=gate, shadow=shadow, log=log)
            if not stage and not undecided:
                with log.step("promote", version=version, release=manifest.release):
                    deployment.serve(version)
        _forget_older(deployment, log)
    if undecided and not stage:
        raise Failure(f"version {version} stays the candidate, and the old release serves on: {undecided}")
    return version


def _check_new(manifest: Manifest, repository: Repository, *, stage: bool) -> None:
    if stage and repository.pinned() is None:
        raise UsageError("nothing serves yet, so there is nothing to stage a candidate beside; publish without --stage")
    if (serving := repository.pinned()) is not None:
        check_same_features(manifest.features, repository.feature_names(serving), manifest.release)
    for role, version in (("serves", repository.pinned()), ("is the candidate", repository.candidate())):
        if version is not None and repository.release(version) == manifest.release:
            raise UsageError(f"{manifest.release} is published already, as version {version}, which {role}")


@contextmanager
def _undone_on_failure(deployment: Deployment, log: ReleaseLog, release: str, version: int) -> Iterator[None]:
    configs = deployment.repository.configs()
    try:
        yield
    except BaseException as error:
        deployment.repository.sweep()
        deployment.undo_after(error, configs, version)
        serving = deployment.repository.pinned()
        print(f"took {release} out again; " + (f"version {serving} serves on" if serving else "nothing is published"))
        if isinstance(error, OSError):
            raise Failure(f"cannot publish {release}: {error}; nothing was changed") from error
        raise


def _bring_in(release: Path, manifest: Manifest, deployment: Deployment, version: int, log: ReleaseLog) -> None:
    """Copy the release in and rehearse the copy: what fails to start, or answers wrongly, never reaches the server.

    The configs are fitted to what it reads, answers and was measured with; the steps' next load reads them.
    """
    repository, niceness = deployment.repository, deployment.niceness()
    if repository.pinned() is None:
        repository.take_features(len(manifest.features))
    read_probes(release)
    with log.step("copy", version=version):
        copy = repository.copy_in(release, version)
    with log.step("rehearse", version=version) as found:
        rehearsal = rehearse(repository, version, copy=copy, niceness=niceness)
        found.update({name: round(seconds, 3) for name, seconds in rehearsal.seconds.items()})
    repository.admit(copy, version)
    repository.count_labels(len(manifest.labels))
    if placement := manifest.hardware.get("placement"):
        repository.lay_out(placement["instances"], placement["threads"])


def _load_beside(deployment: Deployment, version: int, log: ReleaseLog) -> None:
    """Load the new version's steps one after the other beside those in memory, and make it the candidate."""
    repository = deployment.repository
    serving = repository.pinned()
    if deployment.state is None or serving is None:
        repository.offer(sorted({serving or version, version}))
    else:
        if repository.candidate() is not None:  # a new candidate takes an older one's place
            deployment.point(CANDIDATE, serving)
        for step in STEPS:
            with log.step(f"load {step}", version=version):
                deployment.offer(sorted({*repository.offered(), version}), step=step)
                settle(deployment.state.http_url, repository.probes(version).rows()[0])
    with log.step("stage", version=version, release=repository.release(version)):
        deployment.point(CANDIDATE, version)


def _prove(url: str, version: int, *, gate: Gate, shadow: Shadow | None, log: ReleaseLog) -> str:
    """Ask the candidate on the running server, while every client's request goes to the release that serves.

    Returns what is missing to know it good enough for the traffic; "" when nothing is.
    """
    repository = Repository(log.repository)
    probes = repository.probes(version)
    with log.step("warm", version=version) as found:
        found["texts"] = warm_up(url, int(repository.manifest(version)["max_length"]), probes.rows()[0])
    with log.step("replay", version=version, texts=len(probes.texts)):
        check_answers(url, probes)
    with log.step("compare", version=version) as found:
        comparison = compare(url, [*probes.rows(), *gate.rows()])
        found.update(agreement=round(comparison.agreement, 4), slowdown=round(comparison.slowdown, 3))
        check_comparison(comparison, gate)
    if shadow is None:
        return ""
    with log.step("shadow", version=version) as found:
        found.update(check_shadow(url, shadow))
    if found["verdict"] == "good" or shadow.accept_undecided:
        return ""
    return (
        f"{found['requests']} shadowed requests did not decide whether it is good; watch more with python -m serving.canary "
        f"--requests {shadow.requests}, or promote {version} as it is; next time give a longer --shadow-seconds, a larger "
        "--shadow-share or --accept-undecided"
    )


def _forget_older(deployment: Deployment, log: ReleaseLog) -> None:
    """Unload what is neither serving, nor the candidate, nor the way back; the files stay until `retire`."""
    repository = deployment.repository
    serving = repository.pinned()
    keep = {serving, repository.candidate(), log.previous(serving)} & set(repository.versions())
    wanted = sorted(version for version in keep if version is not None)
    if wanted != repository.offered():
        with log.step("unload", kept=wanted):
            deployment.offer(wanted)
