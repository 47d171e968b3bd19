"""`clients.canary`: who takes part, who gets which answer, what is written down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from clients import BadRequest, ClassifierError, Prediction, Rejected, RetryPolicy, Tls, Unavailable
from clients.canary import AsyncCanaryClassifier, CanaryClassifier, Outcome, takes_part
from clients.wire import ProtocolName
from contract.tensors import CANDIDATE, CLASSIFIER
from serving.state import ServerState
from tests.clients.relay import Authority, Relay, relayed, tls_context
from tests.tiny import tiny_texts


class FakeClassifier:
    """Answers every text with one label, or fails."""

    def __init__(self, release: str, label: str, failure: ClassifierError | None = None) -> None:
        self.release, self.label, self.failure = release, label, failure
        self.asked = 0
        self.closed = False

    def classify(self, texts: Sequence[str], *, features: object = None) -> list[Prediction]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return [Prediction(text, self.label, 1.0, {self.label: 1.0}, self.release, False) for text in texts]

    def close(self) -> None:
        self.closed = True


OLD, NEW = "old", "new"


def canary(
    *,
    failure: ClassifierError | None = None,
    label: str = "a",
    share: float = 1.0,
    shadow: bool = False,
    record: Path | None = None,
) -> CanaryClassifier:
    """A canary client whose two releases are fakes; the serving one says "a"."""
    client = CanaryClassifier("localhost:1", share=share, shadow=shadow, record=record)
    for connection in client._clients.values():
        connection.close()
    client._clients = {CLASSIFIER: FakeClassifier(OLD, "a"), CANDIDATE: FakeClassifier(NEW, label, failure)}  # type: ignore[dict-item]
    return client


def test_a_share_of_the_keys_takes_part_and_a_larger_share_has_them_too() -> None:
    keys = [f"user-{number}" for number in range(10_000)]
    chosen = {share: {key for key in keys if takes_part(key, share)} for share in (0.0, 0.05, 0.3, 1.0)}
    assert chosen[0.0] == set()
    assert chosen[1.0] == set(keys)
    assert chosen[0.05] < chosen[0.3]
    assert len(chosen[0.05]) / len(keys) == pytest.approx(0.05, abs=0.01)


def test_a_key_always_takes_the_same_way() -> None:
    with canary(share=0.5) as client:
        for key in ("a", "b", "c", "d"):
            releases = {client.classify(["text"], key=key)[0].release for _ in range(5)}
            assert releases == {NEW if takes_part(key, 0.5) else OLD}


def test_without_a_key_the_share_is_drawn() -> None:
    with canary(share=0.5) as client:
        assert {client.classify(["text"])[0].release for _ in range(200)} == {OLD, NEW}


def test_every_outcome_is_a_line(tmp_path: Path) -> None:
    record = tmp_path / "canary.jsonl"
    with canary(label="b", record=record) as client:
        client.classify(["one", "two"], key="k")
        client.classify(["three"], key="k")
    outcomes = [Outcome(**json.loads(line)) for line in record.read_text().splitlines()]
    assert [(outcome.texts, outcome.disagreements) for outcome in outcomes] == [(2, 2), (1, 1)]
    assert all((outcome.candidate, outcome.serving, outcome.error) == (NEW, OLD, None) for outcome in outcomes)


def test_in_the_shadow_the_caller_gets_the_serving_answer() -> None:
    with canary(label="b", shadow=True) as client:
        assert client.classify(["text"])[0].release == OLD
        assert client._clients[CANDIDATE].asked == 1  # type: ignore[attr-defined]


def test_a_failing_candidate_costs_its_caller_nothing_and_is_written_down(tmp_path: Path) -> None:
    record = tmp_path / "canary.jsonl"
    with canary(failure=Unavailable("gone"), record=record) as client:
        for _ in range(2):  # asked first and asked second
            assert client.classify(["text"])[0].release == OLD
    outcomes = [Outcome(**json.loads(line)) for line in record.read_text().splitlines()]
    assert [(outcome.error, outcome.candidate, outcome.disagreements) for outcome in outcomes] == [
        ("Unavailable: gone", "", 0)
    ] * 2


def test_a_text_that_the_serving_release_refuses_is_its_callers(tmp_path: Path) -> None:
    record = tmp_path / "canary.jsonl"
    with canary(failure=BadRequest("empty"), record=record) as client:
        client._clients[CLASSIFIER] = FakeClassifier(OLD, "a", BadRequest("empty"))  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(BadRequest):
                client.classify(["text"])
    assert record.read_text() == ""


def test_a_text_that_the_candidate_alone_refuses_is_its_failure(tmp_path: Path) -> None:
    record = tmp_path / "canary.jsonl"
    with canary(failure=BadRequest("ids out of range"), record=record) as client:
        for _ in range(2):
            assert client.classify(["text"])[0].release == OLD
    assert [json.loads(line)["error"] for line in record.read_text().splitlines()] == ["BadRequest: ids out of range"] * 2


def test_a_candidate_that_a_full_server_refuses_has_not_failed(tmp_path: Path) -> None:
    record = tmp_path / "canary.jsonl"
    with canary(failure=Rejected("overloaded"), record=record) as client:
        for _ in range(2):
            assert client.classify(["text"])[0].release == OLD
    assert record.read_text() == ""


def test_a_record_that_cannot_be_written_costs_no_answer() -> None:
    with canary(record=Path("/dev/full")) as client, pytest.warns(UserWarning, match="missing from /dev/full: .*No space left"):
        assert client.classify(["text"])[0].release == NEW


def test_closing_closes_both() -> None:
    client = canary()
    client.close()
    assert client._clients[CLASSIFIER].closed  # type: ignore[attr-defined]
    assert client._clients[CANDIDATE].closed  # type: ignore[attr-defined]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="it must be in 0 to 1"):
        CanaryClassifier("localhost:1", share=share)


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_over_mutual_tls_both_releases_are_reached_and_a_lost_connection_costs_no_call(
    server: ServerState, protocol: ProtocolName, tmp_path: Path
) -> None:
    authority, record = Authority(tmp_path / "known"), tmp_path / "canary.jsonl"
    context = tls_context(*authority.issue("server"), client_ca=authority.ca)
    certificate, key = authority.issue("client")
    tls = Tls(ca=authority.ca, certificate=certificate, key=key)
    texts = [text for text, _ in tiny_texts(100)]  # more than one request

    def ask(url: str, relay: Relay) -> None:
        with CanaryClassifier(url, protocol, share=1.0, record=record, retry=RetryPolicy(), tls=tls) as canary:
            for _ in range(3):
                assert [row.text for row in canary.classify(texts)] == texts
                relay.lose_connections()

    async def ask_async(url: str, relay: Relay) -> None:
        async with AsyncCanaryClassifier(url, protocol, share=1.0, record=record, retry=RetryPolicy(), tls=tls) as canary:
            for _ in range(3):
                for rows in await asyncio.gather(canary.classify(texts), canary.classify(texts)):
                    assert [row.text for row in rows] == texts
                await asyncio.to_thread(relay.lose_connections)

    with relayed(server.grpc_url if protocol == "grpc" else server.http_url, context) as (url, relay):
        ask(url, relay)
        asyncio.run(ask_async(url, relay))
    outcomes = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(outcome["error"], outcome["texts"], outcome["disagreements"]) for outcome in outcomes] == [(None, 100, 0)] * 9
