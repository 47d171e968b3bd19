"""`loadtests.search`: the command around the descent, with planted measurements; and once with real ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.command import Failure, UsageError
from contract.files import read_json, read_json_lines, write_json, write_json_lines
from loadtests.deployment import NotStartedError, Setting
from loadtests.descent import Outcome
from loadtests.scenario import Scenario
from loadtests.search import Search, search
from loadtests.space import Space
from loadtests.trial import Trial
from serving.repository import Repository
from tests.loadtests.simulated import SimulatedDeployment
from tests.served import deployed
from tests.tiny import tiny_texts

ROOT = Path(__file__).resolve().parents[2]


def cost_of(setting: Setting) -> float:
    """int8 is half as dear; each further thread or instance costs a little, and so does not waiting."""
    base = {"fp32": 1.0, "int8": 0.5, "wrong": 0.1}[Path(setting.release).name]
    return base + 0.1 * (setting.instances * setting.threads - 1) + (0.05 if setting.delay_us == 0 else 0.0)


def planted(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
    """Two threads are needed; 5 ms of waiting are too many."""
    serves = setting.threads >= 2 and setting.delay_us < 5000
    p99_ms = 80 + setting.delay_us / 1000 if serves else math.inf
    outcome = Outcome(feasible=serves, cost=cost_of(setting) if serves else math.inf, p99_ms=p99_ms, miss=0 if serves else 5)
    return Trial(outcome=outcome, reason="" if serves else "too slow", result={"p99": p99_ms} if serves else None)


class Counted:
    """`planted`, and what it was asked."""

    def __init__(self, measure: Callable[[Setting, Path, Scenario], Trial] = planted) -> None:
        self._measure = measure
        self.settings: list[Setting] = []
        self.windows_s: list[float] = []

    def __call__(self, setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        self.settings.append(setting)
        self.windows_s.append(scenario.duration_s)
        return self._measure(setting, repository, scenario)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search over three releases, of which one gives other labels; nothing is deployed."""

    def publish(release: Path, template: Path, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "release").write_text(release.name, encoding="utf-8")

    def labels(folder: Path, texts: list[str]) -> list[str]:
        wrong = (folder / "release").read_text(encoding="utf-8") == "wrong"
        return ["b" if wrong and number < 2 else "a" for number, _ in enumerate(texts)]

    monkeypatch.setattr("loadtests.search.publish_alone", publish)
    monkeypatch.setattr("loadtests.search.served_labels", labels)
    monkeypatch.setattr("loadtests.search.apply", lambda setting, folder: None)
    releases = tuple(tmp_path / name for name in ("fp32", "int8", "wrong"))
    for release in releases:
        release.mkdir()
        write_json(release / "manifest.json", {"release": release.name})
    write_json_lines(tmp_path / "t.jsonl", [{"text": f"text {number}"} for number in range(100)])
    return Search(
        texts=tmp_path / "t.jsonl",
        rate=50,
        p99_ms=100,
        releases=releases,
        repository=ROOT / "model_repository",
        output=tmp_path / "search",
        instances=(1, 2),
        threads=(1, 2),
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_on_the_space_of_two_cores_it_finds_the_optimum_with_under_a_third_of_the_measurements(
    options: Search, count: int
) -> None:
    best, found, within = [], [], []
    releases = tuple(options.texts.with_name(f"release{number}") for number in range(count))
    for release in releases:
        release.mkdir()
        write_json(release / "manifest.json", {})
    every = Space(
        releases=list(map(str, releases)),
        instances=options.instances,
        threads=options.threads,
        delays_us=options.delays_us,
        batches=options.batches,
    )
    for seed in range(40):
        server = SimulatedDeployment(seed, list(releases))
        outcomes = [server.truth(every.setting(point)) for point in itertools.product(*(range(a.size) for a in every.axes))]
        if not any(outcome.feasible for outcome in outcomes):
            continue
        best.append(min(outcome.rank for outcome in outcomes)[1])
        search(dataclasses.replace(options, releases=releases, output=options.output / str(seed)), server)
        answer = read_json(options.output / str(seed) / "search.json")
        allowed = int(0.3 * answer["settings"])
        within.append(answer["measured"] == len(set(server.measured)) <= allowed)
        assert within[-1] or not any(server.truth(setting).feasible for setting in server.measured[:allowed])
        found.append(answer["winner"]["cores"])
    assert len(best) > 20
    assert np.mean(within) >= 0.95
    assert max(np.divide(found, best)) < 1.1
    assert np.mean(np.isclose(found, best)) >= 0.95


def test_it_goes_on_beyond_its_share_while_nothing_serves(options: Search) -> None:
    def late(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        serves = len(set(measure.settings)) > 16
        return Trial(
            outcome=Outcome(feasible=serves, cost=1, p99_ms=99, miss=1 / len(measure.settings)), reason="", result=None
        )

    measure = Counted(late)
    search(dataclasses.replace(options, releases=options.releases[:1]), measure)
    assert len(set(measure.settings)) == 17  # of 40


def test_it_finds_the_cheapest_and_leaves_its_deployment(options: Search, capsys: pytest.CaptureFixture[str]) -> None:
    measure = Counted()
    search(options, measure)
    answer = read_json(options.output / "search.json")
    winner = answer["winner"]
    assert (Path(winner["release"]).name, winner["instances"], winner["threads"]) == ("int8", 1, 2)
    assert (winner["delay_us"], winner["result"]) == (1000, {"p99": 81.0})
    assert answer["measured"] == len(set(measure.settings)) < answer["settings"] / 2
    assert measure.windows_s[-1] == 30 and set(measure.windows_s[:-1]) == {15}  # the winner is looked at twice as long
    assert (options.output / "winner" / "release").read_text(encoding="utf-8") == "int8"
    said = capsys.readouterr().out
    assert f"{options.releases[2]} is left out: it gives 98.00% of the texts the label of {options.releases[0]}" in said
    assert f"serve it:     python -m serving --repository {options.output / 'winner'}" in said
    assert "<- the cheapest that serves" in said


def test_a_release_that_agrees_enough_may_win(options: Search) -> None:
    search(dataclasses.replace(options, agreement=0.98), Counted())
    assert Path(read_json(options.output / "search.json")["winner"]["release"]).name == "wrong"


def test_without_a_wait_no_batch_size_is_tried(options: Search) -> None:
    measure = Counted()
    search(options, measure)
    assert not any(setting.batch for setting in measure.settings if setting.delay_us == 0)


@pytest.mark.parametrize("trials", [1, 5])
def test_an_interrupted_search_goes_on_where_it_was(options: Search, trials: int) -> None:
    first, second, whole = Counted(), Counted(), Counted()

    def interrupted(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        if len(first.settings) == trials:
            raise KeyboardInterrupt
        return first(setting, repository, scenario)

    with pytest.raises(KeyboardInterrupt):
        search(options, interrupted)
    with (options.output / "trials.jsonl").open("a") as file:
        file.write('{"setting": {"rele')  # as a kill in the middle of a line leaves it
    search(options, second)
    search(dataclasses.replace(options, output=options.output.with_name("whole")), whole)
    assert first.settings + second.settings == whole.settings
    again = Counted()
    search(options, again)
    assert again.settings == []
    assert len(list(read_json_lines(options.output / "trials.jsonl"))) == len(whole.settings)


def test_a_folder_of_another_search_is_refused(options: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(options, Counted())
    with pytest.raises(UsageError, match="holds a search with other load; name another --output"):
        search(dataclasses.replace(options, rate=51), Counted())
    monkeypatch.setattr("loadtests.search.describe_machine", lambda: {"cpu": "another", "cores": 64})
    with pytest.raises(UsageError, match="holds a search with other cpu, cores; name another --output"):
        search(options, Counted())
    monkeypatch.undo()
    with pytest.raises(UsageError, match="holds a search with other releases; name another --output"):
        search(dataclasses.replace(options, releases=options.releases[::-1]), Counted())
    with pytest.raises(UsageError, match="holds a search with other options; name another --output"):
        search(dataclasses.replace(options, instances=(1,)), Counted())
    with pytest.raises(UsageError, match="exists and holds no search"):
        search(dataclasses.replace(options, output=tmp_path / "fp32"), Counted())
    with pytest.raises(UsageError, match=r"--releases .*absent: there is no release; python -m builders\.build writes one"):
        search(dataclasses.replace(options, releases=(tmp_path / "absent",)), Counted())
    with pytest.raises(UsageError, match=r"--texts .*absent\.txt: there is no such file"):
        search(dataclasses.replace(options, texts=tmp_path / "absent.txt"), Counted())


def test_a_winner_that_fails_when_looked_at_again_does_not_win(options: Search) -> None:
    def fickle(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        if setting.instances == 1 and scenario.duration_s == 30:
            return Trial(outcome=Outcome(feasible=False, cost=9, p99_ms=120, miss=1.2), reason="p99 120 ms", result={})
        return planted(setting, repository, scenario)

    search(options, fickle)
    assert read_json(options.output / "search.json")["winner"]["instances"] == 2


def test_a_winner_that_costs_more_when_looked_at_again_gives_way(options: Search) -> None:
    def lucky(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        trial = planted(setting, repository, scenario)
        more = 5.0 if setting.instances == 1 and scenario.duration_s == 30 else 0.0
        return dataclasses.replace(trial, outcome=dataclasses.replace(trial.outcome, cost=trial.outcome.cost + more))

    measure = Counted(lucky)
    search(options, measure)
    answer = read_json(options.output / "search.json")
    second = [setting for setting, seconds in zip(measure.settings, measure.windows_s, strict=True) if seconds == 30]
    assert len(second) == len(set(second)) > 1
    assert dataclasses.asdict(second[-1]) | {"buckets": list(second[-1].buckets)} == {
        name: answer["winner"][name] for name in dataclasses.asdict(second[-1])
    }
    assert answer["winner"]["instances"] == 2 and answer["pareto"][0]["cores"] == answer["winner"]["cores"]


def test_a_search_stopped_between_its_two_looks_goes_on_as_if_it_had_not_been(options: Search) -> None:
    def fickle(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        if setting.instances == 1 and scenario.duration_s == 30:
            return Trial(outcome=Outcome(feasible=False, cost=9, p99_ms=120, miss=1.2), reason="p99 120 ms", result={})
        return planted(setting, repository, scenario)

    whole = Counted(fickle)
    search(dataclasses.replace(options, output=options.output.with_name("whole")), whole)
    for stop in range(1, len(whole.settings)):
        first, second = Counted(fickle), Counted(fickle)

        def interrupted(
            setting: Setting, repository: Path, scenario: Scenario, first: Counted = first, stop: int = stop
        ) -> Trial:
            if len(first.settings) == stop:
                raise KeyboardInterrupt
            return first(setting, repository, scenario)

        part = dataclasses.replace(options, output=options.output.with_name(f"stopped-{stop}"))
        with pytest.raises(KeyboardInterrupt):
            search(part, interrupted)
        search(part, second)
        assert first.settings + second.settings == whole.settings


def test_every_release_is_tried_however_small_the_space(options: Search) -> None:
    measure = Counted()
    search(
        dataclasses.replace(options, instances=(1,), threads=(2,), delays_us=(0,), batches=(0,), releases=options.releases[:2]),
        measure,
    )
    assert Path(read_json(options.output / "search.json")["winner"]["release"]).name == "int8"
    assert {Path(setting.release).name for setting in measure.settings} == {"fp32", "int8"}


def test_a_setting_with_which_no_server_starts_serves_nothing(options: Search) -> None:
    def fragile(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        if (setting.instances == 1) is one_fails:
            raise NotStartedError("the server did not start: out of memory")
        return planted(setting, repository, scenario)

    one_fails = True
    search(options, fragile)
    assert read_json(options.output / "search.json")["winner"]["instances"] == 2
    reasons = [line["reason"] for line in read_json_lines(options.output / "trials.jsonl")]
    assert "the server did not start: out of memory" in reasons
    one_fails = False  # now the first setting of all, and with it perhaps every one
    with pytest.raises(NotStartedError, match="out of memory"):
        search(dataclasses.replace(options, output=options.output.with_name("other")), fragile)


def test_what_was_refused_though_quick_is_not_in_the_front(options: Search) -> None:
    def unsteady(setting: Setting, repository: Path, scenario: Scenario) -> Trial:
        if setting.instances == 1:
            return Trial(outcome=Outcome(feasible=False, cost=0.1, p99_ms=50, miss=0.5), reason="not steady", result={})
        return planted(setting, repository, scenario)

    search(options, unsteady)
    answer = read_json(options.output / "search.json")
    assert answer["winner"] is not None and [row["serves"] for row in answer["pareto"]].count(True) == len(answer["pareto"])
    assert min(row["cores"] for row in answer["pareto"]) == answer["winner"]["cores"] > 0.1


def test_where_nothing_serves_the_nearest_is_told(options: Search) -> None:
    with pytest.raises(
        Failure, match=r"none of \d+ settings serves 50 requests/s at p99 <= 100 ms; the nearest, fp32: .* too slow"
    ):
        search(dataclasses.replace(options, threads=(1,)), Counted())
    assert read_json(options.output / "search.json")["winner"] is None


def test_a_budget_is_kept(options: Search) -> None:
    measure = Counted()
    search(dataclasses.replace(options, budget=4), measure)
    assert len(set(measure.settings)) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": 0}, "--rate 0 for --window-s 15 is under 100 requests"),
        ({"p99_ms": 0}, r"criteria\.p99_ms is 0; it must be above 0"),
        ({"agreement": 1.1}, "--agreement is 1.1"),
        ({"releases": ()}, "--releases is "),
        ({"threads": (2, 1)}, r"--threads is \(2, 1\); it must be rising numbers, at least 0"),
        ({"instances": (0,)}, "--instances is"),
        ({"delays_us": ()}, "--delays-us is"),
        ({"budget": 0}, "--budget is 0"),
        ({"window_s": 1}, "--rate 50 for --window-s 1 is under 100 requests: raise --window-s"),
        ({"window_s": 2}, "--rate 50 for --window-s 2 is under 100 requests: raise --window-s"),  # as its arrivals are drawn
    ],
)
def test_options_that_cannot_be_are_named(change: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {"texts": Path("t"), "rate": 50, "p99_ms": 100}
    with pytest.raises(UsageError, match=said):
        Search(**(values | change))


@pytest.mark.server
def test_a_real_search_leaves_a_deployment_that_can_be_served(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtests.estimates.DRIFT", 1e9)  # how steady two seconds are depends on the machine,
    monkeypatch.setattr("loadtests.trial.MAX_CPU_SHARE", 2.0)  # and so does how busy it is
    monkeypatch.setattr("loadtests.result.MAX_CPU_SHARE", 2.0)
    write_json_lines(tmp_path / "t.jsonl", [{"text": text} for text, _ in tiny_texts(50)])
    options = Search(
        texts=tmp_path / "t.jsonl",
        rate=70,
        p99_ms=20_000,
        releases=(release,),
        repository=deployed(tmp_path, release).path,
        output=tmp_path / "search",
        instances=(2,),
        threads=(1,),
        delays_us=(500,),
        batches=(8,),
        warmup_s=0.2,
        window_s=2,
        budget=1,
    )
    search(options)
    answer = read_json(options.output / "search.json")
    assert answer["agreement"] == {str(release): 1.0}
    assert 0 < answer["winner"]["cores"] < 8
    assert answer["winner"]["result"]["errors"] == {}
    winner = Repository(options.output / "winner")
    assert winner.pinned() == 1
    config = (winner.path / "bert_engine" / "configs" / "cpu.pbtxt").read_text(encoding="utf-8")
    assert "max_queue_delay_microseconds: 500" in config and "count: 2" in config
