"""The cheapest configuration that serves a rate of your texts within a latency, found by measuring few of them.

    python -m loadtests.search --texts mine.jsonl --rate 50 --p99-ms 100 --releases build/fp32 build/int8 --output build/search

Every trial deploys a release into a scratch repository, sets it up, serves it and puts an open loop of --rate requests/s on
it; the cost is the cores that the server's processes used in the window. A trial that has failed is broken off. OUTPUT keeps
the search: the same command continues it, on the same machine.

    OUTPUT/trials.jsonl     every trial with its figures, a line each
    OUTPUT/search.json      the answer, the Pareto front and the releases whose labels agree too little
    OUTPUT/winner/          the winning deployment, ready for python -m serving --repository OUTPUT/winner
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from contract.command import Failure, UsageError, run_command
from contract.files import read_json, sha256_of, write_json
from contract.release import MANIFEST_FILE
from loadtests.deployment import NotStartedError, Setting, apply, publish_alone, template_hashes
from loadtests.descent import BudgetSpentError, Descent, Outcome, Point, pareto
from loadtests.machine import describe_machine
from loadtests.result import MIN_REQUESTS
from loadtests.scenario import Criteria, Load, Scenario
from loadtests.space import Journal, Space
from loadtests.texts import read_texts
from loadtests.trial import Trial, run_trial, served_labels, window_requests

TRIALS_FILE = "trials.jsonl"
IDENTITY_FILE = "identity.json"
AGREEMENT_FILE = "agreement.json"
DEPLOYED_FILE = ".deployed"  # in a scratch deployment that is complete
SHARE = 0.3
"""Of all settings, measured at most once one of them serves, unless --budget says otherwise."""
CORES = len(os.sched_getaffinity(0))
MAX_INSTANCES = 64
"""That the python models share their progress with."""


def _powers(highest: int) -> tuple[int, ...]:
    """1, 2, 4 ... and `highest`."""
    return tuple(sorted({2**power for power in range(highest.bit_length()) if 2**power <= highest} | {highest}))


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the cheapest configuration that serves a rate of your texts within a latency."""

    texts: Path
    """Your texts: JSON lines with a "text" each, a .csv with that column, or a .txt with one a line."""
    rate: float
    """Requests per second, one text each."""
    p99_ms: float
    """Highest 99th percentile of latency, in milliseconds."""
    agreement: float = 0.995
    """Lowest share of the texts to which a release gives the label of the first one."""
    releases: tuple[Path, ...] = (Path("build/release"),)
    """Release folders to choose from: engines and precisions of one model. The first is the one that the others agree with."""
    repository: Path = Path("build/model_repository")
    """Deployed repository whose models are copied; it is not changed, and may be served meanwhile."""
    output: Path = Path("build/search")
    """Folder of the search; one that exists is continued."""
    instances: tuple[int, ...] = _powers(min(CORES, MAX_INSTANCES))
    """Engine instances to choose from, rising."""
    threads: tuple[int, ...] = _powers(CORES)
    """Threads of an instance to choose from, rising."""
    delays_us: tuple[int, ...] = (0, 1000, 5000)
    """Microseconds for which the batcher may hold a request back, rising."""
    batches: tuple[int, ...] = (0, 8)
    """Preferred batch sizes that end that wait, rising; 0 for none."""
    warmup_s: float = 2.0
    """Seconds of load before a window."""
    window_s: float = 15.0
    """Seconds of a measured window, at least 1."""
    budget: int | None = None
    """Settings tried at most, those of earlier calls included; 30 % of all, or until one serves, when left out."""

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1:
            raise UsageError(f"--agreement is {self.agreement}; it must be above 0, at most 1")
        for name, lowest in {"instances": 1, "threads": 0, "delays_us": 0, "batches": 0}.items():
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)) or values[0] < lowest:
                raise UsageError(f"--{name.replace('_', '-')} is {values}; it must be rising numbers, at least {lowest}")
        if not self.releases or len(set(self.releases)) < len(self.releases):
            raise UsageError(f"--releases is {self.releases}; it must be at least one folder, each given once")
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"--budget is {self.budget}; it must be at least 1")
        if self.rate * self.window_s < MIN_REQUESTS or window_requests(self.scenario()) < MIN_REQUESTS:
            window = f"--rate {self.rate:g} for --window-s {self.window_s:g}"
            raise UsageError(f"{window} is under {MIN_REQUESTS} requests: raise --window-s")

    def scenario(self) -> Scenario:
        """The load of every trial. Raises UsageError for a rate, a bound or seconds that cannot be."""
        return Scenario(
            texts=self.texts,
            load=Load(kind="open", rate=self.rate),
            criteria=Criteria(p99_ms=self.p99_ms),
            warmup_s=self.warmup_s,
            duration_s=self.window_s,
        )

    def identity(self) -> dict[str, Any]:
        """What must stay the same for trials to be comparable."""
        hashes = [[str(release), sha256_of(release / MANIFEST_FILE)] for release in self.releases]  # in their order
        machine = describe_machine()
        return {
            "cpu": machine["cpu"],
            "cores": machine["cores"],
            "repository": template_hashes(self.repository),
            "texts": sha256_of(self.texts),
            "load": self.scenario().to_json() | {"texts": ""},
            "agreement": self.agreement,
            "releases": hashes,
            "options": {name: list(getattr(self, name)) for name in ("instances", "threads", "delays_us", "batches")},
        }


Measure = Callable[[Setting, Path, Scenario], Trial]


def search(options: Search, measure: Measure = run_trial) -> None:
    """Run the command; see the module docstring. `measure` makes a trial of a setting on a scratch deployment.

    Raises:
        UsageError: options, texts or releases that cannot be used, or a folder that holds another search.
        Failure: no setting meets the bound, or a deployment does not come up.
    """
    _claim_folder(options)
    deployments = _deploy(options)
    agreement = _agreement(options, deployments)
    fit = [release for release, share in agreement.items() if share >= options.agreement]
    for release in [release for release in agreement if release not in fit]:
        print(f"{release} is left out: it gives {agreement[release]:.2%} of the texts the label of {options.releases[0]}")
    space = Space(
        releases=fit,
        instances=options.instances,
        threads=options.threads,
        delays_us=options.delays_us,
        batches=options.batches,
    )
    journal = Journal(options.output / TRIALS_FILE)
    winner = _find(options, space, journal, deployments, measure)
    _report(options, space, journal, agreement, winner)
    if winner is None:
        nearest = min(journal.trials, key=lambda setting: journal.trials[setting].outcome.rank)
        raise Failure(
            f"none of {len(journal.trials)} settings serves {options.rate:g} requests/s at p99 <= {options.p99_ms:g} ms; the "
            f"nearest, {nearest}: {journal.trials[nearest].reason}. Lower the rate, allow more, or add a faster release"
        )
    _keep_winner(options, winner, deployments[winner.release])


def _find(options: Search, space: Space, journal: Journal, deployments: dict[str, Path], measure: Measure) -> Setting | None:
    """The cheapest setting that meets the bound, by a second look over twice the time.

    The best of many first looks was in part lucky. It is looked at again, and the search goes on from what is best then. A
    search that is continued takes the same path again through what it wrote down: it judges by what it has come past alone.
    """
    scenario = options.scenario()
    twice = dataclasses.replace(scenario, duration_s=2 * scenario.duration_s)
    share = max(SHARE * space.size // 1, sum(axis.size for axis in space.axes))  # every value of each axis once, at least
    known: dict[Setting, Outcome] = {}
    again: set[Setting] = set()

    def trial(setting: Setting, scenario: Scenario, *, confirms: bool = False) -> Outcome:
        made = (journal.second if confirms else journal.first).get(setting)
        if made is None:
            print(f"{'confirm' if confirms else f'trial {len(known) + 1}'}  {setting}", flush=True)
            made = _measured(measure, setting, deployments[setting.release], scenario, first=not known)
            journal.add(setting, made, confirms=confirms)
            print(f"  {_figures(made.outcome)}{made.reason and '  no: '}{made.reason}", flush=True)
        known[setting] = made.outcome
        return made.outcome

    def outcome(point: Point) -> Outcome:
        setting = space.setting(point)
        if setting in known:
            return known[setting]
        serves = any(found.feasible for found in known.values())
        if len(known) >= (options.budget or (share if serves else math.inf)):
            raise BudgetSpentError
        return trial(setting, scenario)

    descent = Descent(space.axes, outcome)
    while (best := descent.run(descent.best() or space.start)) is not None:
        setting = space.setting(best)
        if setting in again:
            return setting
        again.add(setting)
        second = trial(setting, twice, confirms=True)
        descent.outcomes |= {point: second for point in descent.outcomes if space.setting(point) == setting}
    return None


def _measured(measure: Measure, setting: Setting, deployment: Path, scenario: Scenario, *, first: bool) -> Trial:
    """A trial; a server that does not start with a setting serves nothing. Raises `Failure` where not even the `first` does."""
    try:
        return measure(setting, deployment, scenario)
    except NotStartedError as error:
        if first:
            raise
        return Trial(
            outcome=Outcome(feasible=False, cost=math.inf, p99_ms=math.inf, miss=math.inf), reason=str(error), result=None
        )


def _figures(outcome: Outcome) -> str:
    if outcome.cost == math.inf:
        return "broken off"
    return f"{outcome.cost:.3g} cores, p99 {outcome.p99_ms:.4g} ms"


def _claim_folder(options: Search) -> None:
    """Make the folder of the search, or see that it is of this very search."""
    for release in options.releases:
        if not (release / MANIFEST_FILE).exists():
            raise UsageError(f"--releases {release}: there is no release; python -m builders.build writes one")
    if not options.texts.exists():
        raise UsageError(f"--texts {options.texts}: there is no such file")
    path, identity = options.output / IDENTITY_FILE, options.identity()
    if path.exists():
        before = read_json(path)
        different = [key for key in identity if before.get(key) != identity[key]]
        if different:
            raise UsageError(f"{options.output} holds a search with other {', '.join(different)}; name another --output")
    elif options.output.exists() and any(options.output.iterdir()):
        raise UsageError(f"{options.output} exists and holds no search; name another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(path, identity)


def _deploy(options: Search) -> dict[str, Path]:
    """A scratch deployment of each release, by the release's folder."""
    deployments = {str(release): options.output / "deployed" / str(number) for number, release in enumerate(options.releases)}
    for release, folder in deployments.items():
        if not (folder / DEPLOYED_FILE).exists():
            folder.parent.mkdir(exist_ok=True)
            publish_alone(Path(release), options.repository, folder)
            (folder / DEPLOYED_FILE).touch()
    return deployments


def _agreement(options: Search, deployments: dict[str, Path]) -> dict[str, float]:
    """The share of texts to which each release gives the first one's label; asked of the servers once a search."""
    if len(deployments) == 1:
        return dict.fromkeys(deployments, 1.0)
    path = options.output / AGREEMENT_FILE
    if not path.exists():
        texts = read_texts(options.texts, limit=options.scenario().sample)
        labels = {release: served_labels(folder, texts) for release, folder in deployments.items()}
        first = labels[str(options.releases[0])]
        equal = {release: sum(map(str.__eq__, first, given)) / len(texts) for release, given in labels.items()}
        write_json(path, equal)
    shares: dict[str, float] = read_json(path)
    return shares


def _report(options: Search, space: Space, journal: Journal, agreement: dict[str, float], winner: Setting | None) -> None:
    """Print the Pareto front, of what serves and what is too slow, and write OUTPUT/search.json."""
    outcomes = {setting: trial.outcome for setting, trial in journal.trials.items()}
    front = pareto({key: found for key, found in outcomes.items() if found.feasible or found.p99_ms > options.p99_ms})
    print(f"\n{len(journal.trials)} of {space.size} settings measured; none beats these in both cost and p99:")
    print(f"{'cores':>8}{'p99 ms':>10}  setting")
    for setting in front:
        outcome = journal.trials[setting].outcome
        note = "  <- the cheapest that serves" if setting == winner else "" if outcome.feasible else "  (too slow)"
        print(f"{outcome.cost:>8.3g}{outcome.p99_ms:>10.4g}  {setting}{note}")
    answer = {
        "date": datetime.now(UTC).date().isoformat(),
        "rate": options.rate,
        "p99_ms": options.p99_ms,
        "machine": describe_machine(),
        "agreement": agreement,
        "settings": space.size,
        "measured": len(journal.trials),
        "pareto": [_row(setting, journal) for setting in front],
        "winner": None if winner is None else _row(winner, journal) | {"result": journal.trials[winner].result},
    }
    write_json(options.output / "search.json", answer)


def _row(setting: Setting, journal: Journal) -> dict[str, Any]:
    outcome = journal.trials[setting].outcome
    figures: dict[str, Any] = {"cores": outcome.cost, "p99_ms": outcome.p99_ms, "serves": outcome.feasible}
    return dataclasses.asdict(setting) | figures


def _keep_winner(options: Search, winner: Setting, deployment: Path) -> None:
    """Leave the winning deployment in OUTPUT/winner."""
    target = options.output / "winner"
    apply(winner, deployment)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(deployment, target, ignore=shutil.ignore_patterns(DEPLOYED_FILE, ".server.json", ".lock"))
    print(f"\nthe cheapest: {winner}\nserve it:     python -m serving --repository {target}")


if __name__ == "__main__":
    run_command(lambda: search(tyro.cli(Search, prog="python -m loadtests.search", description=__doc__)))
