"""Publishing into a running server under traffic: nothing fails, nothing mixes, what does not pass is taken out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from clients import connect
from contract.command import Failure, UsageError
from contract.files import write_json_lines
from contract.probes import read_probes
from contract.release import read_manifest
from contract.tensors import CANDIDATE, CLASSIFIER, ENGINE
from serving.gate import Gate
from serving.publish import publish
from serving.release_log import ReleaseLog
from serving.releases import list_releases
from serving.repository import Repository
from serving.sequential import Limits
from serving.shadow import Shadow
from serving.state import ServerState
from serving.switch import promote, retire, rollback, withdraw
from tests.served import deployed, serving, wait_until
from tests.serving.faults import faulty, variant, vouch
from tests.serving.traffic import ANY, Traffic, known_answers

pytestmark = pytest.mark.server


@dataclass
class Site:
    """A running server, its repository, and clients that know what each release says."""

    repository: Repository
    state: ServerState
    releases: list[Path]
    traffic: Traffic

    def answers_as(self, ensemble: str = CLASSIFIER) -> str:
        with connect(self.state.grpc_url, model=ensemble) as classifier:
            return classifier.classify(["the cat"])[0].release


@pytest.fixture(scope="module")
def site(release: Path, second_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    third = variant(release, folder / "third", name="third", shift=0.5)
    releases = [release, second_release, third]
    texts = read_probes(release).texts
    known = known_answers(folder / "scratch", releases, texts)
    repository = deployed(folder, release)
    with serving(repository) as state:
        yield Site(repository, state, releases, Traffic(state.grpc_url, texts, known))


@pytest.fixture
def clean(site: Site) -> Iterator[Site]:
    """The site under two clients, none of whose requests may fail or be mixed; version 1 serves before and after."""
    with site.traffic.running(closed=2) as answers:
        yield site
        if site.repository.pinned() != 1:
            promote(site.repository, 1, load=True)
        retire(site.repository, [version for version in site.repository.versions() if version != 1], force=True)
    assert answers.failures == []
    assert answers.mixed == []
    assert (site.repository.versions(), site.repository.offered()) == ([1], [1])
    assert site.answers_as() == site.answers_as(CANDIDATE) == read_manifest(site.releases[0]).release


def test_releases_that_differ_widely_are_told_apart(site: Site) -> None:
    known = [logits for _, logits in sorted(site.traffic._known.items())]
    for number, logits in enumerate(known):
        for other in known[:number]:
            assert np.abs(logits - other).max(axis=1).min() > 0.05


def test_a_release_replaces_another_and_the_traffic_goes_back_and_forth(clean: Site) -> None:
    repository, names = clean.repository, [read_manifest(folder).release for folder in clean.releases]

    def served(name: str) -> None:
        seen = clean.traffic.answers.by_release[name]
        assert wait_until(lambda: clean.traffic.answers.by_release[name] > seen + 20)

    served(names[0])
    assert publish(clean.releases[1], repository, gate=ANY) == 2
    served(names[1])
    assert publish(clean.releases[2], repository, gate=ANY) == 3
    served(names[2])
    assert repository.offered() == [2, 3]  # 1 is on the disk, no longer in memory
    with pytest.raises(UsageError, match="version 1 is not loaded"):
        promote(repository, 1)
    assert [rollback(repository), rollback(repository)] == [2, 1]  # the second loads what it goes back to
    served(names[0])
    with pytest.raises(UsageError, match="nothing served before version 1"):
        rollback(repository)
    promote(repository, 3)
    served(names[2])
    assert clean.answers_as(CANDIDATE) == names[2]
    steps = [event["event"] for event in ReleaseLog(repository.path).events()]
    publishing = [
        "copy",
        "rehearse",
        "load bert_tokenizer",
        "load bert_engine",
        "stage",
        "warm",
        "replay",
        "compare",
        "promote",
    ]
    assert steps[4 : 4 + len(publishing)] == publishing


def test_a_candidate_is_loaded_and_asked_by_nobody_who_does_not_mean_it(
    clean: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(clean.releases[2], clean.repository, gate=ANY, stage=True) == 2
    assert (clean.answers_as(), clean.answers_as(CANDIDATE)) == (read_manifest(clean.releases[0]).release, "third")
    list_releases(clean.repository)
    assert "third  <- candidate" in capsys.readouterr().out
    assert publish(clean.releases[1], clean.repository, gate=ANY, stage=True) == 3  # takes its place
    assert clean.answers_as(CANDIDATE) == read_manifest(clean.releases[1]).release
    promote(clean.repository, 3)
    assert clean.answers_as() == read_manifest(clean.releases[1]).release
    assert clean.answers_as(CANDIDATE) == read_manifest(clean.releases[1]).release


def wrong_on_the_server(release: Path, target: Path) -> Path:
    """Answers rightly while it is rehearsed, and wrongly inside the server."""
    variant(release, target, name="wrong-on-the-server", shift=0.5)
    model = target / ENGINE / "model.py"
    source = model.read_text(encoding="utf-8")
    wrong = "\nimport sys\nif 'rehearsed' not in sys.argv[0]:\n    _right = run_rows\n"
    wrong += "    run_rows = lambda *arguments: [-logits for logits in _right(*arguments)]\n"
    model.write_text(source + wrong, encoding="utf-8")
    return vouch(target)


def one_sided(release: Path, target: Path) -> Path:
    """A release in order that gives every text the first label."""
    return variant(release, target, name="one-sided", shift=30.0)


def corrupt(release: Path, target: Path) -> Path:
    return faulty(release, target, "truncated engine")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(corrupt, "does not load or does not answer", id="corrupt"),
        pytest.param(wrong_on_the_server, "does not give its checkpoint's answers on this server", id="wrong on the server"),
        pytest.param(one_sided, "agrees with the serving one on", id="disagrees"),
    ],
)
def test_a_release_that_does_not_pass_is_taken_out_while_the_old_one_serves_on(
    clean: Site, tmp_path: Path, make: Callable[[Path, Path], Path], said: str
) -> None:
    before = clean.repository.configs()
    with pytest.raises(Failure, match=said):
        publish(make(clean.releases[0], tmp_path / "bad"), clean.repository, gate=Gate(max_slowdown=1000))
    assert {path: text for path, text in clean.repository.configs().items() if text != before[path]} == {}
    assert clean.repository.versions() == [1]
    assert clean.answers_as(CANDIDATE) == read_manifest(clean.releases[0]).release
    assert "refuse" in [event["event"] for event in ReleaseLog(clean.repository.path).events()]


def test_a_shadow_of_live_traffic_lets_a_good_release_pass_and_finds_a_bad_one(clean: Site, tmp_path: Path) -> None:
    texts, first = read_probes(clean.releases[0]).texts, read_manifest(clean.releases[0]).release
    requests = tmp_path / "requests.jsonl"
    write_json_lines(requests, [{"text": text, "key": str(number)} for number, text in enumerate(texts * 3)])
    shadow = Shadow(requests=requests, share=1.0, seconds=240)
    with pytest.raises(Failure, match="in the shadow of live traffic the new release is bad"):
        publish(one_sided(clean.releases[0], tmp_path / "bad"), clean.repository, gate=ANY, shadow=shadow)
    assert clean.repository.versions() == [1]
    empty = tmp_path / "none.txt"
    empty.touch()
    with pytest.raises(Failure, match="no request came to shadow"):
        publish(clean.releases[2], clean.repository, gate=ANY, shadow=Shadow(requests=empty, seconds=0.1))
    # of a tiny model latency says little
    few = Shadow(requests=requests, share=0.5, seconds=3, limits=Limits(max_slowdown=1000))
    with pytest.raises(
        Failure, match=r"version (\d+) stays the candidate, .*: \d+ shadowed requests did not decide .* promote \1 "
    ):
        publish(clean.releases[2], clean.repository, gate=ANY, shadow=few)
    assert (clean.repository.pinned(), clean.answers_as(), clean.answers_as(CANDIDATE)) == (1, first, "third")
    withdraw(clean.repository, {})
    accepted = dataclasses.replace(few, accept_undecided=True)
    assert publish(clean.releases[2], clean.repository, gate=ANY, shadow=accepted) == clean.repository.pinned()
    rollback(clean.repository)
    quick = Limits(max_disagreement=0.5, usual_disagreement=0.1, max_error_rate=0.5, usual_error_rate=0.1, max_slowdown=1000)
    follow = Shadow(requests=requests, share=0.5, seconds=240, limits=quick)
    assert publish(clean.releases[2], clean.repository, gate=ANY, shadow=follow) > 1
    found = [event for event in ReleaseLog(clean.repository.path).events() if event["event"] == "shadow"][-1]
    assert found["verdict"] == "good"
    assert 0 < found["requests"] < 3 * len(texts)
