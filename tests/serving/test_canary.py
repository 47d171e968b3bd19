"""A canary from end to end: clients send their share to the candidate, and the command decides."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.canary import CanaryClassifier, Outcome, takes_part
from contract.command import Failure, UsageError
from contract.files import write_json_lines
from contract.tensors import CANDIDATE
from serving.canary import Canary, decide, watch
from serving.publish import publish
from serving.release_log import ReleaseLog
from serving.repository import Repository
from serving.sequential import Limits
from serving.shadow import Shadow, follow, parse_request
from serving.state import ServerState
from tests.served import deployed, serving
from tests.serving.faults import variant
from tests.serving.test_sequential import DECIDED_WITHIN
from tests.serving.traffic import ANY, known_answers
from tests.tiny import tiny_texts

PATIENT = Limits(max_slowdown=1000, max_error_rate=0.03)  # how fast a crowded machine is says nothing here


class Site:
    """A server with a candidate that answers like another release, and texts on which they agree and differ."""

    def __init__(self, repository: Repository, state: ServerState, same: list[str], differing: list[str]) -> None:
        self.repository, self.state, self.same, self.differing = repository, state, same, differing

    def stream(self, requests: int, rate: float) -> list[str]:
        """Texts of which `rate` are answered differently, evenly spread."""
        every = round(1 / rate) if rate else requests + 1
        return [
            self.differing[number % len(self.differing)] if number % every == every - 1 else self.same[number % len(self.same)]
            for number in range(requests)
        ]


@pytest.fixture(scope="module")
def one_sided(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A candidate that calls everything an animal."""
    return variant(release, tmp_path_factory.mktemp("one-sided") / "release", name="one-sided", shift=30.0)


@pytest.fixture(scope="module")
def site(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("canary")
    texts = [text for text, _ in tiny_texts(60, seed=5)]
    (known,) = known_answers(folder / "scratch", [release], texts).values()
    animals, plants = ([text for text, row in zip(texts, known, strict=True) if row.argmax() == label] for label in (0, 1))
    assert min(len(animals), len(plants)) > 10
    repository = deployed(folder, release)
    with serving(repository) as state:
        yield Site(repository, state, animals, plants)


@pytest.fixture
def staged(site: Site, one_sided: Path) -> Site:
    """The site with a candidate, version 1 serving."""
    if site.repository.candidate() is None:
        publish(one_sided, site.repository, gate=ANY, stage=True)
    return site


def traffic(site: Site, texts: list[str], record: Path, share: float) -> None:
    """A client that is the canary, one key a text."""
    with CanaryClassifier(site.state.grpc_url, share=share, record=record) as client:
        for number, text in enumerate(texts):
            key = f"user-{number}"
            (prediction,) = client.classify([text], key=key)
            assert prediction.release.startswith("one-sided" if takes_part(key, share) else "first-")


def options(site: Site, **changes: object) -> Canary:
    values: dict[str, object] = {"repository": site.repository.path, "timeout_s": 240.0, "limits": PATIENT}
    return Canary(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.server
def test_a_planted_disagreement_is_taken_back_with_its_evidence_while_the_canary_runs(staged: Site, tmp_path: Path) -> None:
    candidate = staged.repository.candidate()
    record = tmp_path / "canary.jsonl"
    record.touch()
    errors: list[BaseException] = []
    decided = threading.Event()

    def clients() -> None:
        try:
            with CanaryClassifier(staged.state.grpc_url, share=0.5, record=record) as client:
                while not decided.is_set():
                    for number, text in enumerate(staged.stream(200, 0.1)):
                        client.classify([text], key=f"user-{number}")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=clients)
    thread.start()
    try:
        with pytest.raises(Failure, match=rf"version {candidate} was rolled back: disagrees on \d+ of \d+"):
            watch(options(staged, records=record))
    finally:
        decided.set()
        thread.join()
    assert errors == []
    assert (staged.repository.candidate(), staged.repository.pinned(CANDIDATE), staged.repository.pinned()) == (None, 1, 1)
    event = ReleaseLog(staged.repository.path).events()[-1]
    assert (event["event"], event["evidence"]["verdict"]) == ("withdraw", "bad")


@pytest.mark.server
def test_a_three_percent_disagreement_is_caught_within_the_stated_number_of_requests(staged: Site, tmp_path: Path) -> None:
    record = tmp_path / "canary.jsonl"
    traffic(staged, staged.stream(500, 0.03), record, share=1.0)
    candidate = staged.repository.release(staged.repository.candidate() or 0)
    test = decide((Outcome(**json.loads(line)) for line in record.read_text().splitlines()), candidate, PATIENT)
    assert test.verdict == "bad"
    assert test.errors.seen <= 500 < DECIDED_WITHIN
    assert test.disagreement.counted / test.disagreement.seen == pytest.approx(0.03, abs=0.01)


@pytest.mark.server
def test_a_candidate_that_agrees_is_promoted(staged: Site, tmp_path: Path) -> None:
    candidate = staged.repository.candidate()
    requests = tmp_path / "requests.jsonl"
    write_json_lines(requests, [{"text": text, "key": str(n)} for n, text in enumerate(staged.stream(400, 0.0))])
    watch(options(staged, requests=requests, share=0.9))
    assert staged.repository.pinned() == candidate
    event = ReleaseLog(staged.repository.path).events()[-1]
    assert (event["event"], event["evidence"]["disagreements"]) == ("promote", 0)


def test_outcomes_of_an_earlier_candidate_do_not_count() -> None:
    old = [Outcome(candidate="older", serving="s", texts=1, disagreements=1, candidate_ms=1, serving_ms=1)] * 500
    new = [Outcome(candidate="new", serving="s", texts=1, disagreements=0, candidate_ms=1, serving_ms=1)] * 2000
    test = decide(iter(old + new), "new", Limits())
    assert test.verdict == "good"
    assert test.disagreement.counted == 0


def test_failures_of_an_earlier_candidate_do_not_count() -> None:
    good = Outcome(candidate="new", serving="s", texts=1, disagreements=0, candidate_ms=1, serving_ms=1, at=101.0)
    failed, new = [dataclasses.replace(good, candidate="", error="E", at=99.0)] * 500, [good] * 2000
    assert decide(iter(failed + new), "new", Limits(), since=100.0).verdict == "good"
    assert decide(iter(failed + new), "new", Limits(), since=0.0).verdict == "bad"


def test_without_a_candidate_or_a_server_there_is_nothing_to_watch(tmp_path: Path, release: Path, second_release: Path) -> None:
    repository = deployed(tmp_path, release)
    watched = Canary(repository=repository.path, records=tmp_path / "canary.jsonl")
    with pytest.raises(UsageError, match="no candidate is staged"):
        watch(watched)
    publish(second_release, repository, stage=True)
    with pytest.raises(UsageError, match="no server runs"):
        watch(watched)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "one of --records and --requests"),
        ({"records": Path("a"), "requests": Path("b")}, "one of --records and --requests"),
        ({"records": Path("a"), "share": 0.0}, "--share is 0"),
        ({"records": Path("a"), "timeout_s": 0.0}, "--timeout-s is 0"),
    ],
)
def test_a_wrong_option_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Canary(**changes)  # type: ignore[arg-type]


def test_a_file_is_followed_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "requests.txt"
    path.write_text("one\ntwo\nthr")
    lines = follow(path, 60)
    assert [next(lines), next(lines)] == ["one", "two"]
    with path.open("a") as file:
        file.write("ee\n")
    assert next(lines) == "three"
    assert list(follow(path, 1e-9)) == []  # the time is over
    with pytest.raises(UsageError, match="cannot read"):
        next(follow(tmp_path / "absent", 1))


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("plain", ("plain", "plain", None)),
        ('{"text": "t", "key": "k"}', ("t", "k", None)),
        ('{"text": "t", "features": [1, 2.5]}', ("t", "t", [1, 2.5])),
        ("{not json", ("{not json", "{not json", None)),
        ('{"other": 1}', ('{"other": 1}', '{"other": 1}', None)),
        ('{"a":' * 26_000, ('{"a":' * 26_000, '{"a":' * 26_000, None)),
    ],
)
def test_a_request_is_a_text_or_an_object(line: str, asked: tuple[str, str, object]) -> None:
    assert parse_request(line) == asked


def test_a_shadow_without_a_share_is_refused() -> None:
    with pytest.raises(UsageError, match="share of the requests is 0"):
        Shadow(requests=Path("a"), share=0.0)
