"""Move the traffic between versions that are in the repository already, and delete what is no longer needed.

A move is one flip of the ensemble's pins. It is put back when the version does not answer, so the traffic is never left on one
that cannot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from contract.command import Failure, UsageError
from contract.tensors import CANDIDATE
from serving.deployment import RESTART_WAIT_S, Deployment
from serving.rehearsal import rehearse
from serving.release_log import ReleaseLog
from serving.repository import Repository


def promote(
    repository: Repository,
    version: int,
    *,
    load: bool = False,
    evidence: dict[str, object] | None = None,
    url: str | None = None,
) -> None:
    """Move the traffic to `version`.

    Args:
        load: load it first where it is not in memory.
        evidence: what the decision rests on, for the log.

    Raises:
        UsageError: there is no such version, it serves already, or it is not loaded.
        Failure: it does not answer; what served before serves on.
    """
    with _at_work(repository, url) as (deployment, log):
        if version not in repository.versions():
            raise UsageError(f"there is no version {version}; there are {_listed(repository.versions())}")
        if version == repository.pinned():
            raise UsageError(f"version {version} serves already")
        if not load and not deployment.is_loaded(version):
            raise UsageError(f"version {version} is not loaded; promote it with --load, or publish its release again")
        facts: dict[str, object] = {} if evidence is None else {"evidence": evidence}
        with log.step("promote", version=version, release=repository.release(version), **facts):
            _serve(deployment, version)


def rollback(repository: Repository, *, url: str | None = None) -> int:
    """Move the traffic back to the version that served before, and return it; once more goes back further.

    Where the server is down, perhaps because of the release that is left, the files change at once: its next start reads them.

    Raises:
        UsageError: none served before.
        Failure: it does not answer; what serves now serves on. Or the server did not come up to serve it yet.
    """
    with _at_work(repository, url, wait=False) as (deployment, log):
        serving = repository.pinned()
        target = log.previous(serving)
        if serving is None or target is None or target not in repository.versions():
            raise UsageError(f"nothing served before version {serving}, so there is nothing to go back to")
        with log.step("rollback", version=target, left=serving, release=repository.release(target)) as found:
            found["served"] = served = _serve_at_last(deployment, target)
    if not served:
        raise Failure(
            f"version {target} is what the server's next start serves, which did not come within {RESTART_WAIT_S:g} s; "
            "its log says why it ends"
        )
    return target


def withdraw(repository: Repository, evidence: dict[str, object], *, url: str | None = None) -> int:
    """Take the candidate out of the traffic and out of memory, and return it; its files stay until `retire`.

    Raises:
        UsageError: there is no candidate.
    """
    with _at_work(repository, url) as (deployment, log):
        candidate, serving = repository.candidate(), repository.pinned()
        if candidate is None or serving is None:
            raise UsageError("there is no candidate to withdraw")
        with log.step("withdraw", version=candidate, release=repository.release(candidate), evidence=evidence):
            deployment.point(CANDIDATE, serving)
            deployment.offer([version for version in repository.offered() if version != candidate])
    return candidate


def retire(
    repository: Repository,
    versions: Sequence[int] = (),
    *,
    keep: int | None = None,
    force: bool = False,
    url: str | None = None,
) -> list[int]:
    """Unload and delete versions, and return them.

    Args:
        versions: which; or none of them and
        keep: all but the newest so many, the serving one, the candidate and the rollback target not counted or touched.
        force: the rollback target as well.

    Raises:
        UsageError: a version that does not exist, that serves, or that is the rollback target.
    """
    with _at_work(repository, url) as (deployment, log):
        existing, serving = repository.versions(), repository.pinned()
        target = log.previous(serving)
        needed = {serving, target, repository.candidate()}
        spare = [version for version in existing if version not in needed]
        chosen = list(dict.fromkeys(versions)) if keep is None else spare[: max(len(spare) - keep, 0)]
        for version in chosen:
            if version not in existing:
                raise UsageError(f"there is no version {version}; there are {_listed(existing)}")
            if version == serving:
                raise UsageError(f"version {version} serves; promote or roll back to another one first")
            if version == target and not force:
                raise UsageError(f"version {version} is the one that a rollback goes back to; --force retires it all the same")
        if repository.pinned(CANDIDATE) in chosen and serving is not None:
            deployment.point(CANDIDATE, serving)
        loaded = [version for version in repository.offered() if version not in chosen]
        if loaded != repository.offered():
            deployment.offer(loaded)
        for version in chosen:
            with log.step("retire", version=version, release=repository.release(version)):
                repository.remove_version(version)
    return chosen


@contextmanager
def _at_work(repository: Repository, url: str | None, *, wait: bool = True) -> Iterator[tuple[Deployment, ReleaseLog]]:
    """Hold the repository, and wait for a server that is down; what the block has changed is put back when it fails."""
    repository.check()
    with repository.locked():
        deployment, configs = Deployment.find(repository, url), repository.configs()
        if wait:
            deployment.wait_until_up()
        try:
            yield deployment, ReleaseLog(repository.path)
        except BaseException as error:
            deployment.undo_after(error, configs, None)
            raise


def _serve(deployment: Deployment, version: int) -> None:
    """Flip to `version`, loading it first where it is not in memory; what fails to start never reaches the server."""
    repository = deployment.repository
    if not deployment.is_loaded(version):
        damaged = repository.damaged(version)
        if damaged:
            raise Failure(f"files of version {version} were damaged since it was published: {', '.join(damaged)}")
        rehearse(repository, version, niceness=deployment.niceness())
        deployment.offer(sorted({*repository.offered(), version}))
    deployment.serve(version)


def _serve_at_last(deployment: Deployment, version: int) -> bool:
    """`_serve`; while the server is down on the disk alone, until it comes up. Whether it came."""
    deadline, told = time.monotonic() + RESTART_WAIT_S, False
    while True:
        if deployment.is_up():
            try:
                _serve(deployment, version)
                return True
            except Failure:
                if deployment.is_up():
                    raise
        if not told:
            _serve(Deployment(deployment.repository, None), version)
            print(f"the server is down; its next start serves version {version}; waiting for that", flush=True)
            told = True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
