"""A release that reads numbers beside the text, on a real server: asked by every client, swapped, refused where it must be."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from builders.check import examine, find_versions
from builders.check_rules import Finding, Server, check_features
from builders.containers import find_container
from clients import BadRequest, Classifier, connect, connect_async
from clients.canary import CanaryClassifier
from clients.classify import Classify, classify
from clients.score import Score, score
from clients.tokenizer_check import TokenizerCheck, check_tokenizer
from clients.wire import ProtocolName
from contract.command import Failure, UsageError
from contract.release import read_manifest
from contract.tensors import CANDIDATE, CLASSIFIER
from serving.gate import Gate
from serving.probe import ask
from serving.publish import publish
from serving.repository import Repository
from serving.shadow import Shadow, replayed
from serving.state import ServerState
from serving.status import read_server
from serving.switch import promote, rollback
from tests.served import deployed, serving
from tests.serving.faults import faulty, variant
from training.checkpoint import heldout_rows, load_checkpoint
from training.evaluation import compute_logits

HEALTHCHECK = Path(__file__).parents[2] / "docker" / "healthcheck.py"
NAMES = ["account_age_days", "tags", "reputation", "title_words", "body_words"]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def repository(tabular_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return deployed(tmp_path_factory.mktemp("served"), tabular_release)


@pytest.fixture(scope="module")
def server(repository: Repository) -> Iterator[ServerState]:
    with serving(repository) as state:
        yield state


@pytest.fixture(scope="module")
def rows(tabular_merged: Path) -> Rows:
    return heldout_rows(tabular_merged, 30)


@pytest.fixture(scope="module")
def expected(tabular_merged: Path, rows: Rows) -> npt.NDArray[np.float32]:
    """The checkpoint's own logits."""
    checkpoint = load_checkpoint(tabular_merged)
    found: npt.NDArray[np.float32] = compute_logits(checkpoint.model, checkpoint.encode(rows), tokens_per_batch=256).numpy()
    return found


def address(server: ServerState, protocol: str) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


def asked(server: ServerState, protocol: ProtocolName = "grpc") -> Classifier:
    return connect(address(server, protocol), protocol)


def texts_of(rows: Rows) -> list[str]:
    return [row["text"] for row in rows]


def features_of(rows: Rows) -> list[list[float]]:
    return [row["features"] for row in rows]


def write_rows(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_served_logits_are_the_checkpoints(
    server: ServerState, rows: Rows, expected: npt.NDArray[np.float32], protocol: ProtocolName
) -> None:
    with asked(server, protocol) as classifier:
        assert classifier.feature_names() == NAMES
        np.testing.assert_allclose(classifier.logits(texts_of(rows), features=features_of(rows)), expected, atol=1e-4)
        backwards = [dict(reversed(list(zip(NAMES, row["features"], strict=True)))) for row in rows]
        np.testing.assert_allclose(classifier.logits(texts_of(rows), features=backwards), expected, atol=1e-4)
        predictions = classifier.classify(texts_of(rows), features=np.array(features_of(rows)))  # type: ignore[arg-type]
    assert [list(one.scores).index(one.label) for one in predictions] == expected.argmax(1).tolist()
    elsewhere = np.roll(features_of(rows), 1, axis=0).tolist()
    with asked(server, protocol) as classifier:
        assert np.abs(classifier.logits(texts_of(rows), features=elsewhere) - expected).max() > 1e-2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_numbers_stay_with_their_texts_when_requests_share_a_batch(
    server: ServerState, rows: Rows, expected: npt.NDArray[np.float32], protocol: ProtocolName
) -> None:
    async def main() -> None:
        async with connect_async(address(server, protocol), protocol, in_flight=16) as classifier:
            assert await classifier.feature_names() == NAMES
            parts = [rows[start : start + 1 + start % 3] for start in range(len(rows))]
            asking = [classifier.logits(texts_of(part), features=features_of(part)) for part in parts]
            for start, found in enumerate(await asyncio.gather(*asking)):
                np.testing.assert_allclose(found, expected[start : start + len(found)], atol=1e-4)

    asyncio.run(main())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("features", "said"),
    [
        (None, f"the texts come without numbers; this release reads the features {json.dumps(NAMES)}"),
        ([[1.0, 2.0]] * 2, f"2 number(s) come with each text; this release reads the features {json.dumps(NAMES)}"),
        ([[1.0] * 5, [1.0, 2.0, float("nan"), 4.0, 5.0]], "text 1: the feature reputation is nan; a finite number is needed"),
        ([[1.0, 1e39, 1.0, 1.0, 1.0]] * 2, "text 0: the feature tags is inf"),
        ([dict.fromkeys(NAMES[1:], 1.0)] * 2, "text 0 lacks the feature 'account_age_days'; this release reads account_age"),
        ([dict.fromkeys([*NAMES, "age"], 1.0)] * 2, "text 0 has the feature 'age'; this release reads account_age_days, tags"),
    ],
    ids=["none", "two", "nan", "infinite", "lacking", "unknown"],
)
def test_what_is_wrong_with_the_numbers_is_named(server: ServerState, protocol: ProtocolName, features: Any, said: str) -> None:
    with asked(server, protocol) as classifier, pytest.raises(BadRequest, match=re.escape(said)):
        classifier.classify(["a cat", "the old tree"], features=features)


def failures(server: ServerState) -> list[str]:
    lines = ask(server.metrics_url, "/metrics", None, 60.0).body.splitlines()
    return [line for line in lines if line.startswith("nv_inference_request_failure")]


@pytest.mark.parametrize("model", [CLASSIFIER, CANDIDATE])
def test_the_health_check_sends_the_numbers_that_the_release_reads(
    server: ServerState, tabular_release: Path, model: str
) -> None:
    command = [
        sys.executable,
        "-I",
        str(HEALTHCHECK),
        "--url",
        f"http://{server.http_url}",
        "--model",
        model,
        "--timeout-s",
        "60",
    ]
    failed = failures(server)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{read_manifest(tabular_release).release}\n", "")
    assert failures(server) == failed  # what alerts watch


def test_one_text_is_classified_from_the_command_line(
    server: ServerState, rows: Rows, expected: npt.NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    values = [str(value) for value in rows[0]["features"]]
    for features in (values, [f"{name}={value}" for name, value in zip(NAMES, values, strict=True)]):
        classify(Classify(texts=(rows[0]["text"],), url=server.grpc_url, features=tuple(features)))
        found = json.loads(capsys.readouterr().out)
        assert list(found["scores"]).index(found["label"]) == expected[0].argmax()
    with pytest.raises(UsageError, match="the texts come without numbers"):
        classify(Classify(texts=("a cat",), url=server.grpc_url))


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (("tags=x",), "could not convert string to float: 'x'"),
        (("tags=1", "2"), "each name once"),
        (("a=1", "a=2"), "each name"),
    ],
)
def test_numbers_that_are_none_are_refused_before_anything_is_sent(features: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=f"--features.*{said}"):
        Classify(texts=("a cat",), features=features)


def test_a_file_is_scored_by_its_columns(
    server: ServerState, rows: Rows, expected: npt.NDArray[np.float32], tabular_merged: Path, tmp_path: Path
) -> None:
    cells = [[row["text"], *row["features"], 7] for row in rows[:9]]
    source = write_rows(tmp_path / "in.csv", ["body", *NAMES, "hits"], [*cells, ["a cat", "1", "", "1", "1", "1", "1"]])
    options: dict[str, Any] = {"input": source, "text_column": "body", "url": server.grpc_url, "part_rows": 4}
    summary = score(Score(output=tmp_path / "out.csv", **options))
    assert (summary.rows, summary.errors) == (10, 1)
    with (tmp_path / "out.csv").open() as file:
        scored = list(csv.DictReader(file))
    labels = load_checkpoint(tabular_merged).labels
    assert [row["label"] for row in scored[:9]] == [labels[best] for best in expected[:9].argmax(1)]
    assert scored[9]["error"] == "the feature tags is ''; a finite number is needed"
    assert score(Score(output=tmp_path / "other.csv", feature_columns=(*NAMES[:4], "hits"), **options)).errors == 1
    with pytest.raises(UsageError, match=r"names 1 column\(s\); the release reads account_age_days, tags"):
        score(Score(output=tmp_path / "third.csv", feature_columns=("hits",), **options))
    bare = write_rows(tmp_path / "bare.csv", ["body"], [["a cat"]])
    with pytest.raises(UsageError, match=r"bare.csv has no column 'account_age_days'; .* in this order by --feature-columns"):
        score(Score(output=tmp_path / "third.csv", **options | {"input": bare}))


def test_a_release_of_the_same_features_takes_the_traffic_over_and_gives_it_back(
    server: ServerState, repository: Repository, tabular_release: Path, rows: Rows, tmp_path: Path
) -> None:
    other = variant(tabular_release, tmp_path / "other", name="other", shift=0.01)
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    publish(other, repository, gate=Gate(probe=probe, max_slowdown=100.0), stage=True)
    with CanaryClassifier(server.grpc_url, share=1.0) as canary:
        answered = canary.classify(texts_of(rows), features=features_of(rows))
        assert {one.release for one in answered} == {read_manifest(other).release}
        replay = Shadow(requests=probe, share=1.0, seconds=0.5)
        assert [outcome.error for outcome in replayed(server.http_url, replay)] == [None, None]
    promote(repository, 2)
    assert rollback(repository) == 1
    with asked(server) as classifier:
        assert classifier.classify(["a cat"], features=[[1, 2, 3, 4, 5]])[0].release == read_manifest(tabular_release).release
    assert read_server(server).answers


def test_a_release_that_reads_something_else_is_refused_and_nothing_changes(
    server: ServerState, repository: Repository, release: Path, tabular_release: Path, tmp_path: Path
) -> None:
    before = repository.configs()
    with pytest.raises(UsageError, match=r"reads text alone, what serves reads the features account_age_days, tags, .*its own"):
        publish(release, repository)
    assert repository.configs() == before
    plain = deployed(tmp_path, release)
    before = plain.configs()
    with pytest.raises(UsageError, match=r"reads the features account_age_days, .*, what serves reads text alone, .*its own"):
        publish(tabular_release, plain)
    assert (plain.configs(), plain.versions()) == (before, [1])
    assert server.features == repository.features() == 5


def test_a_first_release_that_fails_leaves_the_configs_as_they_were(tabular_release: Path, tmp_path: Path) -> None:
    broken = faulty(tabular_release, tmp_path / "broken", "truncated engine")
    repository = deployed(tmp_path)
    before = repository.configs()
    with pytest.raises(Failure, match="does not load or does not answer"):
        publish(broken, repository)
    assert (repository.configs(), repository.versions(), repository.features()) == (before, [], 0)


def test_what_a_killed_publisher_did_to_the_configs_is_done_anew(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    before = repository.configs()
    repository.take_features(3)
    repository.take_features(5)
    assert repository.features() == 5
    once = deployed(tmp_path / "once")
    once.take_features(5)
    assert list(repository.configs().values()) == list(once.configs().values())
    repository.take_features(0)
    assert repository.configs() == before


def test_golden_texts_and_the_forecast_of_what_loads_know_of_features(
    server: ServerState, repository: Repository, tabular_release: Path
) -> None:
    assert check_tokenizer(TokenizerCheck(release=tabular_release, url=server.grpc_url, version="1")) > 5
    target = Server(find_container("26.07"), None, False, None)
    for version in (*find_versions(repository.path)[:1], *find_versions(tabular_release)):
        assert examine(version, target).wrong == []
    found = Finding()
    check_features({"features": NAMES}, {"input": []}, found)
    assert found.wrong == ["it reads 5 features beside each text, the config takes 0; publish it, which fits that"]
