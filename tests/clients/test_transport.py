"""`clients.transport` without a server: every failure is one of `clients.errors`, names the address, and comes in time."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import tritonclient.grpc

from clients import BadRequest, Classifier, ClassifierError, ServerError, TimedOut, Unavailable, connect
from clients.transport import GrpcTransport, ProtocolName
from clients.wire import DEFAULT_TIMEOUT_S
from tests.clients.sockets import closed_url, silent_url

PROTOCOLS: list[ProtocolName] = ["grpc", "http"]
CALLS: dict[str, Callable[[Classifier], object]] = {
    "classify": lambda classifier: classifier.classify(["a"]),
    "logits": lambda classifier: classifier.logits(["a"]),
    "check_ready": lambda classifier: classifier.check_ready(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_where_nobody_listens_the_classifier_is_unavailable_at_once(protocol: ProtocolName, call: str) -> None:
    url = closed_url()
    started = time.monotonic()
    with connect(url, protocol) as classifier, pytest.raises(Unavailable, match="is the server running") as raised:
        CALLS[call](classifier)
    assert url in str(raised.value)
    assert time.monotonic() - started < DEFAULT_TIMEOUT_S / 2  # it did not wait for the deadline


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_where_nobody_answers_the_call_ends_at_its_deadline(protocol: ProtocolName, call: str) -> None:
    with silent_url() as url, connect(url, protocol, timeout_s=0.5) as classifier:
        started = time.monotonic()
        with pytest.raises(TimedOut, match=rf"{url}: no answer within 0\.\d+ s"):  # what was left of 0.5 s
            CALLS[call](classifier)
        assert 0.4 < time.monotonic() - started < 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tritonclient's __del__ after a failed __init__
@pytest.mark.parametrize("url", ["127.0.0.1:port", "127.0.0.1:99999", "http://127.0.0.1:8000"])
def test_an_http_address_that_is_no_host_and_port_is_an_error_of_ours(url: str) -> None:
    with pytest.raises(ClassifierError, match=f"^{url}: "), connect(url, "http") as classifier:
        classifier.classify(["a"])
    gc.collect()  # here, where it is ignored, and not in the middle of another test


@contextmanager
def answering(response: bytes) -> Iterator[str]:
    """The address of a socket that answers what a connection sends first by `response` and by nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)  # a test that never calls must end too

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                connection.recv(65536)
                connection.sendall(response)
                connection.shutdown(socket.SHUT_WR)
                with suppress(OSError):  # closed over what was not read yet, it would be a reset to the client, and no end
                    while connection.recv(65536):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join()


def http_response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("response", "kind", "said"),
    [
        (http_response("400 Bad Request", b'{"error":"text 0 is empty"}'), BadRequest, "text 0 is empty"),
        (http_response("404 Not Found", b'{"error":"unknown model"}'), Unavailable, "unknown model"),
        (http_response("500 Internal Server Error", b'{"error":"it broke"}'), ServerError, "it broke"),
        (http_response("502 Bad Gateway", b"<html>nginx</html>"), Unavailable, "nginx"),
        (http_response("503 Service Unavailable", b'{"error":"Exceeds maximum queue size"}'), ClassifierError, "queue size"),
        (http_response("200 OK", b"<html>hello</html>"), Unavailable, "Parse error"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut", Unavailable, "Incomplete response"),
        (b"\0\0\x18\4\0\0\0\0\0" + b"\0\3\x7f\xff\xff\xff" * 4, Unavailable, "Expected HTTP"),  # what gRPC's port says
        (b"", Unavailable, "is the server running"),
    ],
)
def test_an_http_answer_that_is_none_becomes_its_error(response: bytes, kind: type[ClassifierError], said: str) -> None:
    with answering(response) as url, connect(url, "http", timeout_s=60) as classifier:
        with pytest.raises(kind, match=said) as raised:
            classifier.classify(["a"])
        assert url in str(raised.value)


def test_an_http_answer_without_its_tensors_is_an_error() -> None:
    empty = http_response("200 OK", b'{"outputs": []}')
    with answering(empty) as url, connect(url, "http") as classifier, pytest.raises(ServerError, match="1 texts were sent"):
        classifier.classify(["a"])


@pytest.mark.parametrize("response", [b"HTTP/1.1 200 OK\r\n\r\nhello", b"not HTTP at all\r\n\r\n"])
def test_a_server_that_does_not_speak_grpc_is_unavailable(response: bytes) -> None:
    with answering(response) as url, connect(url, "grpc", timeout_s=60) as classifier:
        with pytest.raises(Unavailable) as raised:
            classifier.classify(["a"])
        assert url in str(raised.value)


def test_a_grpc_client_is_closed_exactly_once_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `__del__` closes again, and under gevent a second closing of one channel can hang the process as it ends."""
    closed: list[int] = []
    close = tritonclient.grpc.InferenceServerClient.close

    def counted(client: Any) -> None:
        closed.append(id(client))
        close(client)

    monkeypatch.setattr(tritonclient.grpc.InferenceServerClient, "close", counted)
    transport = GrpcTransport("127.0.0.1:9", 1.0)
    transport.close()
    transport.close()
    del transport
    gc.collect()
    assert len(closed) == 1
