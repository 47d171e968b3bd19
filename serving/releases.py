"""Publish releases into a deployed repository, under load if need be; move the traffic between them; list, delete and log them.

    python -m serving.releases publish build/release --repository build/model_repository
    python -m serving.releases publish build/release --stage
    python -m serving.releases promote 2
    python -m serving.releases rollback
    python -m serving.releases retire --keep 2
    python -m serving.releases list
    python -m serving.releases log

No request fails, and none is answered by a tokenizer of one release and an engine of another: the new release is loaded beside
the old one, proved, and the ensemble's pins are moved in one step (`serving.publish`). Without a running server only the files
change. docs/releases.md is the operator's page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import UsageError, run_command, stop_on_signals
from serving.deployment import Deployment
from serving.gate import Gate
from serving.publish import publish
from serving.release_log import ReleaseLog
from serving.repository import DEFAULT_REPOSITORY, Repository
from serving.sequential import Limits
from serving.shadow import Shadow
from serving.switch import promote, retire, rollback


@dataclass(frozen=True, kw_only=True)
class _Place:
    repository: Path = DEFAULT_REPOSITORY
    """Deployed repository. Its running server, if there is one, is told."""
    url: str | None = None
    """HTTP host:port of the server, where it is not reached at the address that it wrote down in the repository."""


@dataclass(frozen=True, kw_only=True)
class Publish(_Place):
    """Publish a release: the first one, or a replacement of the one that serves."""

    release: Annotated[Path, tyro.conf.Positional]
    """Release folder, of builders.build."""
    stage: bool = False
    """Load and prove it, but leave the traffic where it is: a candidate, for a canary or a later promote."""
    version: int | None = None
    """Number to publish it as, above every other one; the next when left out."""
    gate: Annotated[Gate, tyro.conf.OmitArgPrefixes] = field(default_factory=Gate)
    """What it has to pass beside the serving release."""
    shadow: Path | None = None
    """File of live requests, one a line, a share of which is replayed on both releases before the traffic moves."""
    shadow_share: float = 0.1
    """The share."""
    shadow_seconds: float = 30.0
    """How long the file is followed."""
    shadow_disagreement: float = 0.03
    """A release that disagrees with the serving one on this share of the shadowed texts is refused; a third of it is usual."""
    accept_undecided: bool = False
    """Promote it also when too few requests came to shadow to know whether it is good; else it stays the candidate."""

    def __post_init__(self) -> None:
        self.shadowed()

    def shadowed(self) -> Shadow | None:
        """The shadow options as one; None without --shadow."""
        limits = Limits(max_disagreement=self.shadow_disagreement, usual_disagreement=self.shadow_disagreement / 3)
        shadow = Shadow(
            requests=self.shadow or Path(),
            share=self.shadow_share,
            seconds=self.shadow_seconds,
            limits=limits,
            accept_undecided=self.accept_undecided,
        )
        return shadow if self.shadow else None


@dataclass(frozen=True, kw_only=True)
class Promote(_Place):
    """Move the traffic to a version that is loaded."""

    version: Annotated[int, tyro.conf.Positional]
    """Its number, as `list` shows it."""
    load: bool = False
    """Load it first where it is not in memory."""


@dataclass(frozen=True, kw_only=True)
class Rollback(_Place):
    """Move the traffic back to the version that served before; once more goes back further."""


@dataclass(frozen=True, kw_only=True)
class Retire(_Place):
    """Unload and delete versions."""

    versions: Annotated[tuple[int, ...], tyro.conf.Positional] = ()
    """Their numbers; or --keep."""
    keep: int | None = None
    """Retire all but the newest so many, beside the serving one, the candidate and the rollback target."""
    force: bool = False
    """The rollback target as well, when it is named."""

    def __post_init__(self) -> None:
        if bool(self.versions) == (self.keep is not None):
            raise UsageError("retire takes version numbers or --keep, one of the two")
        if self.keep is not None and self.keep < 0:
            raise UsageError(f"--keep is {self.keep}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class ListReleases(_Place):
    """List the published releases."""


@dataclass(frozen=True, kw_only=True)
class ShowLog(_Place):
    """Show what was done to the repository, oldest first."""


Command = Publish | Promote | Rollback | Retire | ListReleases | ShowLog


def list_releases(repository: Repository, *, url: str | None = None) -> None:
    """Print one line a version: its number, its release, and what it is for."""
    repository.check()
    deployment = Deployment.find(repository, url)
    serving, candidate = repository.pinned(), repository.candidate()
    target = ReleaseLog(repository.path).previous(serving)
    if not repository.versions():
        print(f"no release is published in {repository.path}")
    for version in repository.versions():
        role = {candidate: "candidate", target: "rollback target"}.get(version, "")
        if version == serving:
            role = "serves" if deployment.state else "pinned; no server runs"
        elif version not in repository.offered():
            role = ", ".join([*([role] if role else []), "not loaded"])
        print(f"{version:>4}  {repository.release(version)}{f'  <- {role}' if role else ''}")


def show_log(repository: Repository) -> None:
    """Print one line an event."""
    repository.check()
    for event in ReleaseLog(repository.path).events():
        facts = {name: value for name, value in event.items() if name not in {"time", "event"}}
        shown = "  ".join(f"{name} {value if isinstance(value, str) else json.dumps(value)}" for name, value in facts.items())
        print(f"{event['time']}  {event['event']:<20}{shown}")


def main(command: Command) -> None:
    """Run a subcommand."""
    repository = Repository(command.repository)
    match command:
        case Publish():
            version = publish(
                command.release,
                repository,
                gate=command.gate,
                shadow=command.shadowed(),
                stage=command.stage,
                version=command.version,
                url=command.url,
            )
            print(f"version {version} {'is the candidate' if command.stage else 'serves'}")
        case Promote():
            promote(repository, command.version, load=command.load, url=command.url)
        case Rollback():
            print(f"version {rollback(repository, url=command.url)} serves")
        case Retire():
            retired = retire(repository, command.versions, keep=command.keep, force=command.force, url=command.url)
            print(f"retired {', '.join(map(str, retired)) or 'nothing: there is no more than that'}")
        case ListReleases():
            list_releases(repository, url=command.url)
        case ShowLog():
            show_log(repository)


_Commands = (
    Annotated[Publish, tyro.conf.subcommand("publish")]
    | Annotated[Promote, tyro.conf.subcommand("promote")]
    | Annotated[Rollback, tyro.conf.subcommand("rollback")]
    | Annotated[Retire, tyro.conf.subcommand("retire")]
    | Annotated[ListReleases, tyro.conf.subcommand("list")]
    | Annotated[ShowLog, tyro.conf.subcommand("log")]
)

if __name__ == "__main__":
    stop_on_signals()  # whatever ends a publish, what it has changed is put back
    run_command(lambda: main(tyro.cli(_Commands, prog="python -m serving.releases", description=__doc__)))
