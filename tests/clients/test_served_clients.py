"""All four clients (gRPC and HTTP, sync and asyncio) against a real server, plain and through TLS: one behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clients import (
    Prediction,
    RetryPolicy,
    TimedOut,
    Tls,
    Unavailable,
    Untrusted,
    connect,
    connect_async,
)
from clients.wire import ProtocolName
from contract.tensors import CANDIDATE
from serving.state import ServerState
from tests.clients.relay import Authority, hung_up, relayed, tls_context
from tests.clients.sockets import closed_url, silent_url
from tests.tiny import tiny_texts

pytestmark = pytest.mark.server

TEXTS = [text for text, _ in tiny_texts(150)]
PROTOCOLS: list[ProtocolName] = ["grpc", "http"]
Classify = Callable[..., list[Prediction]]


def classify_sync(url: str, protocol: ProtocolName, texts: Sequence[str], **options: Any) -> list[Prediction]:
    with connect(url, protocol, **options) as classifier:
        return classifier.classify(texts)


def classify_async(url: str, protocol: ProtocolName, texts: Sequence[str], **options: Any) -> list[Prediction]:
    async def main() -> list[Prediction]:
        async with connect_async(url, protocol, **options) as classifier:
            return await classifier.classify(texts)

    return asyncio.run(main())


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> ProtocolName:
    name: ProtocolName = request.param
    return name


@pytest.fixture(params=[classify_sync, classify_async], ids=["sync", "async"])
def classify(request: pytest.FixtureRequest) -> Classify:
    function: Classify = request.param
    return function


@pytest.fixture
def url(server: ServerState, protocol: ProtocolName) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


@pytest.fixture(scope="module")
def expected(server: ServerState) -> list[Prediction]:
    """What the plain gRPC client says."""
    return classify_sync(server.grpc_url, "grpc", TEXTS)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "known")


def same(found: list[Prediction], expected: list[Prediction]) -> bool:
    """Whether the answers agree, to what another batching does to the last digits."""
    assert [row.score for row in found] == pytest.approx([row.score for row in expected], abs=1e-4)
    return [(row.text, row.label, row.release) for row in found] == [(row.text, row.label, row.release) for row in expected]


def test_all_clients_give_the_same_answers(
    url: str, protocol: ProtocolName, classify: Classify, expected: list[Prediction]
) -> None:
    assert same(classify(url, protocol, TEXTS), expected)


def test_many_calls_share_one_async_client(url: str, protocol: ProtocolName, expected: list[Prediction]) -> None:
    async def main() -> None:
        async with connect_async(url, protocol, in_flight=4) as classifier:
            await classifier.check_ready()
            rows = await asyncio.gather(*(classifier.classify([text]) for text in TEXTS))
        assert same([row for (row,) in rows], expected)

    asyncio.run(main())


def test_another_model_is_another_address(url: str, protocol: ProtocolName, classify: Classify) -> None:
    with pytest.raises(Unavailable, match=CANDIDATE):
        classify(url, protocol, ["cat"], model=CANDIDATE)


def test_where_nobody_listens_it_is_unavailable_after_its_attempts(protocol: ProtocolName, classify: Classify) -> None:
    policy = RetryPolicy(attempts=3, first_wait_s=0.01, longest_wait_s=0.01)
    with pytest.raises(Unavailable, match="is the server running") as raised:
        classify(closed_url(), protocol, ["cat"], retry=policy)
    assert raised.value.attempts == 3
    assert raised.value.request_id


def test_where_nobody_answers_the_call_ends_at_its_deadline(protocol: ProtocolName, classify: Classify) -> None:
    started = time.monotonic()
    with silent_url() as url, pytest.raises(TimedOut, match=r"no answer within 0\.\d+ s"):
        classify(url, protocol, ["cat"] * 200, timeout_s=0.5, retry=RetryPolicy())
    assert 0.4 < time.monotonic() - started < 20


def test_an_answer_that_trickles_in_does_not_stretch_the_deadline() -> None:
    """A byte a moment would keep a time-out per read waiting for ever."""

    async def main(classify: Classify) -> None:
        ended = asyncio.Event()

        async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            with contextlib.suppress(OSError):
                async with hung_up(writer):
                    while True:
                        writer.write(b" ")
                        await writer.drain()
                        await asyncio.sleep(0.05)
            ended.set()

        async with await asyncio.start_server(trickle, "127.0.0.1", 0) as listening:
            host, port = listening.sockets[0].getsockname()
            with pytest.raises(TimedOut):
                await asyncio.to_thread(classify, f"{host}:{port}", "http", ["cat"], timeout_s=0.5)
            await asyncio.wait_for(ended.wait(), 60)

    for function in (classify_sync, classify_async):
        asyncio.run(main(function))


def test_after_a_deadline_the_client_still_works(server: ServerState, protocol: ProtocolName) -> None:
    """What is left of the late answer must not be read as the next one."""
    target = server.grpc_url if protocol == "grpc" else server.http_url
    with relayed(target) as (url, _), connect(url, protocol) as classifier:
        for _ in range(3):
            with pytest.raises(TimedOut):
                classifier.classify(TEXTS, timeout_s=1e-4)
            assert [row.text for row in classifier.classify(TEXTS[:3])] == TEXTS[:3]


def test_a_lost_connection_is_opened_again_and_the_call_succeeds(
    server: ServerState, protocol: ProtocolName, expected: list[Prediction]
) -> None:
    target = server.grpc_url if protocol == "grpc" else server.http_url
    with relayed(target) as (url, relay), connect(url, protocol, retry=RetryPolicy()) as classifier:
        for _ in range(3):
            assert same(classifier.classify(TEXTS), expected)
            relay.lose_connections()
        assert same(classifier.classify(TEXTS), expected)
        assert relay.accepted >= 4


def test_connections_lost_under_load_cost_no_call(server: ServerState, protocol: ProtocolName) -> None:
    target = server.grpc_url if protocol == "grpc" else server.http_url

    async def main(url: str, lose: Callable[[], None]) -> None:
        async with connect_async(url, protocol, retry=RetryPolicy(), in_flight=4) as classifier:
            calls = [asyncio.create_task(classifier.classify(TEXTS)) for _ in range(20)]
            for done in range(1, 6):
                while sum(call.done() for call in calls) < 3 * done:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(lose)
            for rows in await asyncio.gather(*calls):
                assert [row.text for row in rows] == TEXTS

    with relayed(target) as (url, relay):
        asyncio.run(main(url, relay.lose_connections))
        assert relay.accepted > 1


def test_a_kept_connection_is_used_again(server: ServerState, protocol: ProtocolName) -> None:
    target = server.grpc_url if protocol == "grpc" else server.http_url
    with relayed(target) as (url, relay), connect(url, protocol) as classifier:
        for text in TEXTS[:20]:
            classifier.classify([text])
        assert relay.accepted == 1


@pytest.fixture
def tls_url(server: ServerState, protocol: ProtocolName, authority: Authority) -> Iterator[str]:
    target = server.grpc_url if protocol == "grpc" else server.http_url
    with relayed(target, tls_context(*authority.issue("server"))) as (url, _):
        yield url


def test_tls_with_the_right_authority_gives_the_same_answers(
    tls_url: str, protocol: ProtocolName, classify: Classify, authority: Authority, expected: list[Prediction]
) -> None:
    assert same(classify(tls_url, protocol, TEXTS, tls=Tls(ca=authority.ca)), expected)


def test_a_server_of_another_authority_is_not_trusted_and_not_tried_again(
    tls_url: str, protocol: ProtocolName, classify: Classify, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    for tls in (Tls(ca=other.ca), Tls()):
        with pytest.raises(Untrusted, match=r"no TLS connection: .*check that") as raised:
            classify(tls_url, protocol, ["cat"], tls=tls, retry=RetryPolicy())
        assert raised.value.attempts == 1


def test_a_plain_server_asked_for_tls_is_unavailable(
    url: str, protocol: ProtocolName, classify: Classify, authority: Authority
) -> None:
    with pytest.raises(Unavailable, match=r"TLS|ssl"):
        classify(url, protocol, ["cat"], tls=Tls(ca=authority.ca))


def test_a_tls_server_asked_in_plain_is_unavailable(tls_url: str, protocol: ProtocolName, classify: Classify) -> None:
    with pytest.raises(Unavailable):
        classify(tls_url, protocol, ["cat"], timeout_s=20)


def test_mutual_tls_lets_in_who_has_a_certificate_and_nobody_else(
    server: ServerState,
    protocol: ProtocolName,
    classify: Classify,
    authority: Authority,
    tmp_path: Path,
    expected: list[Prediction],
) -> None:
    target = server.grpc_url if protocol == "grpc" else server.http_url
    context = tls_context(*authority.issue("server"), client_ca=authority.ca)
    certificate, key = authority.issue("client")
    stranger, strange_key = Authority(tmp_path / "other").issue("client")
    with relayed(target, context) as (url, _):
        known = Tls(ca=authority.ca, certificate=certificate, key=key)
        assert same(classify(url, protocol, TEXTS, tls=known), expected)
        for tls in (Tls(ca=authority.ca), Tls(ca=authority.ca, certificate=stranger, key=strange_key)):
            with pytest.raises(Unavailable):
                classify(url, protocol, ["cat"], tls=tls, timeout_s=20)


def test_the_servers_error_carries_the_id_that_was_given(server: ServerState) -> None:
    """What an operator will look for in the server's log."""
    with connect(server.http_url, "http") as classifier, pytest.raises(Unavailable) as raised:
        classifier._transport.model = "nothing"  # type: ignore[attr-defined]
        classifier.classify(["cat"], request_id="order-66")
    assert raised.value.request_id == "order-66"
    assert json.dumps(raised.value.args)


def test_threads_each_have_their_own_client(server: ServerState, expected: list[Prediction]) -> None:
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda number: classify_sync(server.grpc_url, "grpc", TEXTS), range(8)):
            assert same(found, expected)
