"""Watch a candidate take a share of the traffic, and promote it or take it back as soon as the evidence allows.

    python -m serving.releases publish build/release --stage
    python -m serving.canary --records canary.jsonl
    python -m serving.canary --requests requests.jsonl --share 0.05 --max-disagreement 0.03

With --records the clients are the canary: `clients.canary.CanaryClassifier(url, share=0.05, record=Path("canary.jsonl"))`
sends its share to the candidate and writes down how the two releases compare; this command reads along. With --requests
nobody's answer changes: a share of a file of live requests is replayed on both. Exit code 0: promoted. 1: rolled back, or
undecided in time, when the candidate stays as it is. The decision and its evidence are in the release log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from clients.canary import Outcome
from contract.command import Failure, UsageError, run_command, stop_on_signals
from serving.deployment import Deployment
from serving.release_log import ReleaseLog
from serving.repository import DEFAULT_REPOSITORY, Repository
from serving.sequential import CanaryTest, Limits
from serving.shadow import Shadow, follow, replayed
from serving.switch import promote, withdraw


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Promote or withdraw the candidate by a sequential test on its disagreement, errors and latency."""

    repository: Path = DEFAULT_REPOSITORY
    """Deployed repository with a staged candidate and a running server."""
    url: str | None = None
    """HTTP host:port of the server, where it is not reached at the address that it wrote down in the repository."""
    records: Path | None = None
    """File that canary clients write their outcomes to; or --requests."""
    requests: Path | None = None
    """File of live requests, one a line, to replay a share of; or --records."""
    share: float = 0.05
    """Share of --requests that is replayed, by key. Canary clients have a share of their own."""
    timeout_s: float = 3600.0
    """How long to wait for a decision, in seconds."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)
    """What the candidate may do, and how sure the decision has to be."""

    def __post_init__(self) -> None:
        if (self.records is None) == (self.requests is None):
            raise UsageError("give one of --records and --requests")
        if not 0 < self.share <= 1:
            raise UsageError(f"--share is {self.share}; it must be above 0 and at most 1")
        if not self.timeout_s > 0:
            raise UsageError(f"--timeout-s is {self.timeout_s}; it must be above 0")


def watch(options: Canary) -> None:
    """Run the command; see the module docstring.

    Raises:
        UsageError: no candidate is staged, or no server runs.
        Failure: the candidate was rolled back, or there was no decision in time.
    """
    repository = Repository(options.repository)
    repository.check()
    candidate, deployment = repository.candidate(), Deployment.find(repository, options.url)
    if candidate is None:
        raise UsageError("no candidate is staged; python -m serving.releases publish RELEASE --stage does that")
    if deployment.state is None:
        raise UsageError(f"no server runs over {repository.path}; python -m serving starts one")
    since = ReleaseLog(repository.path).staged_at(candidate)
    outcomes = _outcomes(options, deployment.state.http_url)
    test = decide(outcomes, repository.release(candidate), options.limits, since=since)
    evidence = test.evidence()
    print(json.dumps(evidence))
    if test.verdict == "open":
        raise Failure(f"no decision within {options.timeout_s:g} s; version {candidate} stays the candidate")
    if repository.candidate() != candidate:
        raise Failure(f"version {candidate} is no longer the candidate; somebody else moved it")
    if test.verdict == "bad":
        withdraw(repository, evidence, url=options.url)
        raise Failure(f"version {candidate} was rolled back: {describe(test)}")
    promote(repository, candidate, evidence=evidence, url=options.url)
    print(f"version {candidate} serves: {describe(test)}")


def decide(outcomes: Iterator[Outcome], release: str, limits: Limits, *, since: float = 0.0) -> CanaryTest:
    """Read outcomes until the test on those of `release` decides, or there are no more.

    A failure does not say which release failed: what is from before `since` (seconds since 1970) is an earlier candidate's.
    """
    test = CanaryTest(limits)
    with tqdm(desc="canary", unit="requests", mininterval=0.5) as progress:
        for outcome in outcomes:
            if outcome.candidate not in {release, ""} or outcome.at < since:  # written before this candidate was staged
                continue
            progress.update()
            progress.set_postfix_str(f"{test.disagreement} disagree, {test.errors.counted} errors", refresh=False)
            if test.add(outcome) != "open":
                break
    return test


def describe(test: CanaryTest) -> str:
    """The evidence in words."""
    return f"disagrees on {test.disagreement} texts, fails {test.errors} requests, too slow in {test.slower} pairs"


def _outcomes(options: Canary, url: str) -> Iterator[Outcome]:
    if options.requests is not None:
        return replayed(url, Shadow(requests=options.requests, share=options.share, seconds=options.timeout_s))
    return _recorded(options.records or Path(), options.timeout_s)


def _recorded(path: Path, timeout_s: float) -> Iterator[Outcome]:
    for line in follow(path, timeout_s):
        try:
            yield Outcome(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path} has a line that is no outcome of a canary client: {error}") from error


if __name__ == "__main__":
    stop_on_signals()  # in the middle of a flip, too: it is put back
    run_command(lambda: watch(tyro.cli(Canary, prog="python -m serving.canary", description=__doc__)))
