"""Our served classifier beside other servers of the same model, in one run; alternating, and continued where it was stopped.

    python -m loadtests.peers build/merged --release build/release --envs build/peers --output docs/measurements/peers.json
    python -m loadtests.peers build/merged --release build/release --only ours fastapi --rounds 1 --output build/peers.json
    python -m loadtests.peers build/merged --release build/release --list

Each peer lives in a virtual environment of its own below --envs, made on the first call with pinned packages (about 1 GB each).
All serve the same merged checkpoint and classify the same real texts; server and generator share this machine's cores. Every
round starts, measures and ends one server after the other, ours last, so that it can be met with every peer's own rate. What
is finished is in the output and not measured again. An output of another release, checkpoint, machine or option is left as it
is, and refused, unless --fresh is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from contract.command import Failure, UsageError, run_command
from loadtests.deployment import check_deployed
from loadtests.peers.catalogue import catalogue, processor_flags
from loadtests.peers.goals import OURS
from loadtests.peers.session import Session
from loadtests.readers.peers import tables


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Measure our server beside its peers."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint: a Hugging Face folder, with the held-out texts in it."""
    release: Path = Path("build/release")
    """Release built of that checkpoint."""
    repository: Path = Path("build/model_repository")
    """Deployed repository whose models are copied; it is not changed."""
    envs: Path = Path("build/peers")
    """Folder of the peers' virtual environments."""
    output: Path = Path("docs/measurements/peers.json")
    """JSON file to write; one that is there is continued, if it is of the same release, machine and options."""
    fresh: bool = False
    """Begin anew where the output is of another release, machine or options; without it that is refused."""
    work: Path = Path("build/peers-work")
    """Folder for deployments, exported models and logs."""
    texts: Path | None = None
    """Texts to classify, JSON lines; the checkpoint's held-out ones when left out."""
    only: tuple[str, ...] = ()
    """Servers to measure; all when left out. See --list."""
    rounds: int = 2
    """Rounds over all servers, at least 1."""
    seconds: float = 6.0
    """Least length of each measurement, at least 1; it lasts until it has answers enough, up to five times as long. A round
    has seven of them for each peer."""
    warmup_s: float = 2.0
    """Seconds of the same load before each."""
    compared: int = 400
    """Texts whose labels every server must give as the checkpoint does, at least 20."""
    agreement: float = 0.98
    """Share of those labels below which a server is not measured: then it does not do the same work."""
    seed: int = 0
    """Of the texts' order and the arrivals."""
    list: bool = False
    """Show the servers and stop."""

    def __post_init__(self) -> None:
        known = [OURS, *(peer.name for peer in catalogue(processor_flags()))]
        unknown = sorted(set(self.only) - set(known))
        if unknown:
            raise UsageError(f"--only {unknown[0]}: there is {', '.join(known)}")
        for name, lowest in {"rounds": 1, "seconds": 1, "warmup_s": 0, "compared": 20}.items():
            if not getattr(self, name) >= lowest:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 < self.agreement <= 1:
            raise UsageError(f"--agreement is {self.agreement}; it must be above 0, at most 1")


def main(options: Peers) -> None:
    """Run the command; see the module docstring. Exit code 1 when a server could not be measured; the others are."""
    peers = catalogue(processor_flags())
    if options.list:
        print(
            "\n".join(
                [f"{OURS:<20} the release, served", *(f"{peer.name:<20} {peer.title}: {peer.settings}" for peer in peers)]
            )
        )
        return
    wanted = [peer for peer in peers if not options.only or peer.name in options.only]
    ours = not options.only or OURS in options.only
    if ours:
        check_deployed(options.repository)  # ours comes last, after many minutes
    session = Session(
        checkpoint=options.checkpoint,
        release=options.release,
        template=options.repository,
        envs=options.envs,
        work=options.work,
        texts=options.texts or options.checkpoint / "heldout.jsonl",
        seconds=options.seconds,
        warmup_s=options.warmup_s,
        compared=options.compared,
        agreement=options.agreement,
        seed=options.seed,
        output=options.output,
        peers=peers,
        fresh=options.fresh,
    )
    for number in range(1, options.rounds + 1):
        session.measure_round(number, wanted, ours=ours)
    session.book.write()
    print("\n\n".join(tables(options.output).values()))
    print(f"\nwrote {options.output}")
    if session.failed:
        raise Failure("not measured:\n  " + "\n  ".join(f"{name}: {reason}" for name, reason in session.failed.items()))


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Peers, prog="python -m loadtests.peers", description=__doc__)))
