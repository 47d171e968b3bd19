"""Generators, ceiling and stages against real servers: one that serves the tiny release, and one with a slow tokenizer."""

from __future__ import annotations

import dataclasses
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import BadRequest
from contract.command import Failure, UsageError
from contract.files import read_json, write_json_lines
from contract.tensors import TOKENIZER
from loadtests.ceiling import NULL_MODEL
from loadtests.locust_run import LocustRun
from loadtests.locust_run import main as locust_main
from loadtests.measure import measure
from loadtests.operator import Operator, read_operator
from loadtests.readers.load import tables as load_tables
from loadtests.scenario import Load, Scenario
from loadtests.stages import StagesOptions
from loadtests.stages import main as stages_main
from loadtests.target import waiting, waiting_http
from loadtests.trial import labels_of
from tests.clients.sockets import closed_url
from tests.served import deployed, serving
from tests.tiny import tiny_texts

pytestmark = pytest.mark.server

SLOW = """
import time
_execute = TritonPythonModel.execute
def execute(self, requests):
    time.sleep(0.1)
    return _execute(self, requests)
TritonPythonModel.execute = execute
"""


@pytest.fixture(autouse=True)
def _short_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is measured matters here, and not how well."""
    monkeypatch.setattr("loadtests.ceiling.DURATION_S", 0.5)


@pytest.fixture(scope="module")
def repository(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    served = deployed(tmp_path_factory.mktemp("measured"), release)
    with serving(served):
        yield served.path


@pytest.fixture(scope="module")
def operator(repository: Path) -> Operator:
    return read_operator(repository)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    write_json_lines(path, [{"text": text} for text, _ in tiny_texts(50)])
    load = Load(kind="open", rate=50, arrivals="constant")
    return Scenario(texts=path, load=load, warmup_s=0.21, duration_s=2, texts_per_request=2)


def test_a_measurement_carries_all_that_makes_it_one(repository: Path, operator: Operator, scenario: Scenario) -> None:
    before = sorted(path.name for path in repository.rglob("*"))
    result = measure(scenario, url=operator.grpc_url, operator=operator, name="tiny")
    assert result.requests == sum(result.releases.values()) + sum(result.errors.values()) == 100
    assert result.texts_per_s == pytest.approx(2 * result.requests_per_s.value)
    assert list(result.releases) == [read_json(repository / TOKENIZER / "1" / "release.json")["release"]]
    assert result.ceiling.requests_per_s is not None and result.ceiling.requests_per_s > 0
    assert result.machine["cores"] >= 1 and result.machine["versions"]["grpcio"]
    assert result.stages["total_ms"] == pytest.approx(sum(result.stages["mean_ms"].values()))
    assert result.stages["mean_ms"]["engine compute"] > 0 and result.stages["mean_ms"]["tokenizer compute"] > 0
    assert sorted(path.name for path in repository.rglob("*")) == before  # the null model was never in it


def test_the_null_model_is_gone_after_the_measurement(operator: Operator, scenario: Scenario) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400") as raised:
        urllib.request.urlopen(f"http://{operator.http_url}/v2/models/{NULL_MODEL}/ready", timeout=60)
    raised.value.close()


def test_without_the_token_ceiling_and_stages_are_told_to_be_unknown(operator: Operator, scenario: Scenario) -> None:
    result = measure(dataclasses.replace(scenario, duration_s=1), url=operator.grpc_url, operator=None, name="tiny")
    assert (result.ceiling.requests_per_s, result.stages) == (None, {})
    assert "it needs the operator's token" in result.ceiling.how


def test_a_wrong_token_is_refused_by_the_server(operator: Operator) -> None:
    with pytest.raises(Failure, match="403"):
        dataclasses.replace(operator, token="wrong").config(TOKENIZER)


def test_without_a_server_the_measurement_fails_before_it_begins(scenario: Scenario) -> None:
    with pytest.raises(Failure, match="Unavailable"):
        measure(scenario, url=closed_url(), operator=None, name="tiny")


def test_callers_who_wait_are_answered_over_both_protocols(operator: Operator) -> None:
    requests = [("the old cat",), ("a bird", "one dog")]
    with (
        waiting(operator.grpc_url, requests, timeout_s=30) as grpc,
        waiting_http(operator.http_url, requests, timeout_s=30) as http,
    ):
        assert [http(texts) for texts in requests] == [grpc(texts) for texts in requests]
    too_many = ("the old cat",) * 65
    with waiting_http(operator.http_url, [too_many], timeout_s=30) as http, pytest.raises(BadRequest, match="64"):
        http(too_many)


def test_the_labels_of_texts_are_the_classifiers(operator: Operator) -> None:
    rows = tiny_texts(40)
    labels = labels_of(operator.grpc_url, [text for text, _ in rows])
    assert sum(label == kind for label, (_, kind) in zip(labels, rows, strict=True)) > 30
    with pytest.raises(Failure, match="Unavailable"):
        labels_of(closed_url(), ["a"])


def test_a_repository_that_is_not_served_has_no_operator(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not served: it has no \.server\.json"):
        read_operator(tmp_path)


@pytest.fixture
def _any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy it is, and how much it does, depends on the machine."""
    monkeypatch.setattr("loadtests.result.MAX_CPU_SHARE", 2.0)
    monkeypatch.setattr("loadtests.result.MIN_REQUESTS", 5)


@pytest.mark.usefixtures("_any_machine")
def test_locust_runs_a_scenario_in_many_processes(operator: Operator, scenario: Scenario, tmp_path: Path) -> None:
    lines = [f'texts = "{scenario.texts}"', "warmup_s = 2", "duration_s = 4", "[load]", 'kind = "closed"', "users = 4"]
    lines += ['shape = "step"', "[criteria]", "error_rate = 1.0"]
    (tmp_path / "step.toml").write_text("\n".join(lines), encoding="utf-8")
    options = LocustRun(scenario=tmp_path / "step.toml", url=operator.grpc_url, workers=2, output=tmp_path / "load-locust.json")
    locust_main(options)
    found = read_json(tmp_path / "load-locust.json")
    assert (found["unmet"], found["workers"], found["protocol"], found["name"]) == ([], 2, "grpc", "step")
    assert found["requests"] > 20 and found["errors"] == {}
    assert sum(second["good"] for second in found["timeline"]) == found["requests"] == sum(found["releases"].values())
    assert len(found["timeline"]) == 4  # neither the warm-up, nor what was sent after the window
    assert 0 < found["generator_cpu_share"] < 2
    assert found["machine"]["versions"]["locust"] and "not measured" in found["ceiling"]["how"]
    assert "hide queueing" in found["note"]
    assert load_tables(tmp_path / "load-locust.json")["all"].count("step") == 1  # the report reads it


@pytest.mark.usefixtures("_any_machine")
def test_a_release_that_reads_numbers_too_is_loaded_with_zeros(
    tabular_release: Path, tmp_path: Path, scenario: Scenario
) -> None:
    lines = [f'texts = "{scenario.texts}"', "warmup_s = 0", "duration_s = 1", "[load]", 'kind = "closed"', "users = 2"]
    lines += ['shape = "step"']
    (tmp_path / "users.toml").write_text("\n".join(lines), encoding="utf-8")
    with serving(deployed(tmp_path, tabular_release)) as state:
        result = measure(scenario, url=state.grpc_url, operator=None, name="tabular")
        locust_main(
            LocustRun(scenario=tmp_path / "users.toml", url=state.http_url, protocol="http", output=tmp_path / "l.json")
        )
    assert (result.requests, result.errors) == (100, {})
    found = read_json(tmp_path / "l.json")
    assert found["requests"] > 5 and found["errors"] == {}


def test_a_slow_tokenizer_in_a_real_server_is_named(
    release: Path, tmp_path: Path, scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = deployed(tmp_path, release)
    model = slow.path / TOKENIZER / "1" / "model.py"
    model.write_text(model.read_text(encoding="utf-8") + SLOW, encoding="utf-8")
    lines = [f'texts = "{scenario.texts}"', "warmup_s = 0.5", "duration_s = 2", "[load]", 'kind = "closed"', "users = 3"]
    (tmp_path / "closed.toml").write_text("\n".join(lines), encoding="utf-8")
    with serving(slow):
        stages_main(StagesOptions(scenario=tmp_path / "closed.toml", repository=slow.path, output=tmp_path / "stages.json"))
    stages = read_json(tmp_path / "stages.json")
    assert stages["knob"] == "tokenizer"
    assert stages["mean_ms"]["tokenizer compute"] >= 100
    assert "turn: tokenizer: tokenizer" in capsys.readouterr().out
