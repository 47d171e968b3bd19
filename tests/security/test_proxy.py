"""`python -m serving.proxy`: its options, its limits, TLS, and what it says when the server behind it is silent or gone."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from contract.command import Failure, UsageError
from contract.tensors import MAX_BATCH_SIZE, MAX_TEXT_BYTES
from serving.nginx import TEMPLATE, address_of, listen, placeholders, render
from serving.proxy import Proxy, values
from serving.repository import Repository
from serving.state import ServerState
from tests.clients.sockets import closed_url, silent_url
from tests.security.behind import Proxied, needs_nginx, pretended, proxy_command, proxying
from tests.security.certificates import Authority, Identity
from tests.security.wire import INFER, Reply, connected, post, receive, request, send, texts_body
from tests.served import wait_until

STATE = ServerState(pid=1, grpc_url="127.0.0.1:1", http_url="127.0.0.1:2", metrics_url="127.0.0.1:3", control_token="secret")
LIVE = request("GET", "/v2/health/live")


def infer(url: str, **options: Any) -> None:
    """One text over gRPC, without the client library's own checks."""
    with tritonclient.grpc.InferenceServerClient(url, **options) as client:
        tensor = tritonclient.grpc.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["the cat runs"]], dtype=np.object_))
        client.infer("bert_classifier", [tensor], client_timeout=60)


def refusal(url: str, **options: Any) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as raised:
        infer(url, **options)
    return raised.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"listen": "8443"}, "--listen is '8443'; host:port"),
        ({"grpc_listen": "127.0.0.1:http"}, "--grpc-listen is"),
        ({"listen": "127.0.0.1:70000"}, "--listen is"),
        ({"rate": 0}, "--rate is 0"),
        ({"in_flight": -1}, "--in-flight is -1"),
        ({"tls_cert": TEMPLATE}, "belong together"),
        ({"client_ca": TEMPLATE}, "--client-ca needs both"),
        ({"tls_cert": Path("/no/such.pem"), "tls_key": TEMPLATE}, "--tls-cert is /no/such.pem, which is no file"),
        ({"listen": "0.0.0.0:8443"}, "give --tls-cert and --tls-key"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Proxy(**options)


def test_every_place_in_the_template_has_a_value_and_no_secret_is_among_them(tmp_path: Path) -> None:
    filled = values(Proxy(), STATE, tmp_path, http="127.0.0.1:1", grpc="127.0.0.1:2")
    template = TEMPLATE.read_text(encoding="utf-8")
    rendered = render(template, filled)
    assert placeholders(template) == set(filled)
    assert placeholders(rendered) == set()
    assert STATE.control_token not in rendered
    with pytest.raises(ValueError, match="BERT_RATE"):
        render(template, {name: value for name, value in filled.items() if name != "BERT_RATE"})


def test_a_port_in_use_is_named() -> None:
    with listen("127.0.0.1:0", "--listen") as holder, pytest.raises(Failure, match=r"--listen 127\.0\.0\.1.*in use"):
        listen(address_of(holder), "--listen")


def test_without_a_server_the_next_step_is_told(tmp_path: Path) -> None:
    done = subprocess.run(proxy_command(tmp_path), capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, "python -m serving --repository" in done.stderr or "no nginx" in done.stderr) == (2, True)


@needs_nginx
def test_a_silent_server_and_an_absent_one_are_told_apart(tmp_path: Path) -> None:
    with silent_url() as silent:
        state = pretended(tmp_path / "silent", http=silent, grpc=silent)
        with proxying(tmp_path / "silent", state, "--read-timeout-s", "1") as proxy:
            late = post(proxy.http_url, texts_body("the cat runs"))
            assert (late.status, late.error()) == (504, "no answer in time")
            assert refusal(proxy.grpc_url).status() == "StatusCode.DEADLINE_EXCEEDED"
    state = pretended(tmp_path / "absent", http=closed_url(), grpc=closed_url())
    with proxying(tmp_path / "absent", state) as proxy:
        absent = post(proxy.http_url, texts_body("the cat runs"))
        assert (absent.status, absent.error()) == (502, "the server does not answer: try again later")
        assert send(proxy.http_url, LIVE).status == 502
        assert refusal(proxy.grpc_url).status() == "StatusCode.UNAVAILABLE"


@needs_nginx
@pytest.mark.server
def test_the_limits_of_a_request_are_told_to_who_breaks_them(proxied: Proxied) -> None:
    many = post(proxied.http_url, texts_body(*["cat"] * (MAX_BATCH_SIZE + 1)))
    assert (many.status, many.error().endswith("batch-size must be <= 64 for 'bert_classifier'")) == (400, True)
    head = json.dumps(
        {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 0}}]}
    )
    text = b"a " * (MAX_TEXT_BYTES // 2 + 1)
    tensor = len(text).to_bytes(4, "little") + text
    head = head.replace('"binary_data_size": 0', f'"binary_data_size": {len(tensor)}')
    long = post(proxied.http_url, head.encode() + tensor, Inference_Header_Content_Length=str(len(head)))
    assert (long.status, long.error()) == (400, "text 0 has 131074 bytes; at most 131072 are allowed: shorten it")
    empty = post(proxied.http_url, texts_body("cat", " "))
    assert (empty.status, empty.error()) == (400, "text 1 is empty: there is nothing to classify")


@needs_nginx
@pytest.mark.server
def test_too_many_requests_from_one_address_are_refused_for_a_while(
    hardened: ServerState, hardened_repository: Repository
) -> None:
    with proxying(hardened_repository.path, hardened, "--rate", "1") as proxy:
        replies: list[Reply] = []

        def answered(status: int) -> bool:
            replies.append(post(proxy.http_url, texts_body("the cat runs")))
            return replies[-1].status == status

        assert wait_until(lambda: answered(429), seconds=60)
        assert replies[-1].headers["retry-after"] == "1"
        assert replies[-1].error() == "too many requests from this address: slow down"
        assert wait_until(lambda: answered(200), seconds=60)


@needs_nginx
@pytest.mark.server
def test_one_request_more_than_may_be_in_flight_is_refused_at_once(
    hardened: ServerState, hardened_repository: Repository
) -> None:
    with proxying(hardened_repository.path, hardened, "--in-flight", "1", "--client-timeout-s", "300") as proxy:
        with connected(proxy.http_url) as held:
            head = f"POST {INFER} HTTP/1.1\r\nHost: triton\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            held.sendall(head.encode())
            assert held.recv(100).startswith(b"HTTP/1.1 100 ")  # it was counted, and now its body is waited for
            reply = post(proxy.http_url, texts_body("the cat runs"))
            assert (reply.status, reply.error()) == (503, "Exceeds maximum queue size: try again later")
            assert reply.headers["retry-after"] == "1"
            error = refusal(proxy.grpc_url)
            assert (error.status(), "Exceeds maximum queue size" in error.message()) == ("StatusCode.UNAVAILABLE", True)
            assert send(proxy.http_url, LIVE).status == 200
        assert wait_until(lambda: post(proxy.http_url, texts_body("the cat runs")).status == 200, seconds=60)


@needs_nginx
def test_a_client_that_stops_sending_loses_its_connection(tmp_path: Path) -> None:
    state = pretended(tmp_path, http=closed_url(), grpc=closed_url())
    with (
        proxying(tmp_path, state, "--client-timeout-s", "1") as proxy,
        connected(proxy.http_url) as in_the_head,
        connected(proxy.http_url) as in_the_body,
    ):
        in_the_head.sendall(b"POST /v2/models")
        in_the_body.sendall(f"POST {INFER} HTTP/1.1\r\nHost: triton\r\nContent-Length: 5\r\n\r\n{{".encode())
        assert receive(in_the_head).status in {0, 408}
        assert receive(in_the_body).status in {0, 408}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="module")
def own(authority: Authority) -> Identity:
    return authority.issue("server")


def https(url: str, authority: Authority, client: Identity | None = None) -> tuple[int, str]:
    """(status, body) of a health request over TLS."""
    context = ssl.create_default_context(cafile=authority.path)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    connection = http.client.HTTPSConnection(url, context=context, timeout=60)
    try:
        connection.request("GET", "/v2/health/live")
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def grpcs(authority: Authority, client: Identity | None = None) -> dict[str, Any]:
    files = {} if client is None else {"private_key": str(client.key), "certificate_chain": str(client.certificate)}
    return {"ssl": True, "root_certificates": str(authority.path), **files}


@needs_nginx
@pytest.mark.server
def test_tls_over_both_protocols(
    hardened: ServerState, hardened_repository: Repository, authority: Authority, own: Identity, tmp_path: Path
) -> None:
    options = ("--tls-cert", str(own.certificate), "--tls-key", str(own.key))
    with proxying(hardened_repository.path, hardened, *options) as proxy:
        assert https(proxy.http_url, authority) == (200, "")
        infer(proxy.grpc_url, **grpcs(authority))
        with pytest.raises(ssl.SSLCertVerificationError):
            https(proxy.http_url, Authority(tmp_path, "another"))
        assert "speaks TLS" in send(proxy.http_url, LIVE).error()


@needs_nginx
@pytest.mark.server
def test_mutual_tls_over_both_protocols(
    hardened: ServerState, hardened_repository: Repository, authority: Authority, own: Identity, tmp_path: Path
) -> None:
    options = ("--tls-cert", str(own.certificate), "--tls-key", str(own.key), "--client-ca", str(authority.path))
    client, stranger = authority.issue("client"), Authority(tmp_path, "another").issue("stranger")
    with proxying(hardened_repository.path, hardened, *options) as proxy:
        assert https(proxy.http_url, authority, client) == (200, "")
        infer(proxy.grpc_url, **grpcs(authority, client))
        for who in (None, stranger):
            status, body = https(proxy.http_url, authority, who)
            assert (status, "certificate" in json.loads(body)["error"]) == (400, True)
            refusal(proxy.grpc_url, **grpcs(authority, who))


@needs_nginx
def test_a_stopped_proxy_leaves_no_process_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    state = pretended(tmp_path, http=closed_url(), grpc=closed_url())
    with proxying(tmp_path, state) as proxy:
        family: list[psutil.Process] = []

        def complete() -> bool:
            family[:] = psutil.Process(proxy.pid).children(recursive=True)
            return [child.name() for child in family][:2] == ["nginx", "nginx"]  # a master, and its workers soon after

        assert wait_until(complete)
        assert len(list((tmp_path / "temporary").glob("bert-nginx-*"))) == 1
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert list((tmp_path / "temporary").glob("bert-nginx-*")) == []


@pytest.mark.parametrize(
    "reason",
    [
        'the texts come without numbers; this release reads the features ["age"], FP32 [texts, 1] in this order',
        '2 number(s) come with each text; this release reads the features ["age"], FP32 [texts, 1] in this order',
        "text 0: the feature age is nan; a finite number is needed",
        "text 1 is empty: there is nothing to classify",
    ],
)
def test_every_reason_of_the_tokenizer_passes_the_proxy(reason: str) -> None:
    (pattern,) = re.findall(r'map \$upstream_http_grpc_message \$grpc_reason \{\s+"~(.+)" \$reason;', TEMPLATE.read_text())
    found = re.match(pattern.replace("?<reason>", "?P<reason>"), f"in ensemble 'bert_classifier', {reason}")
    assert found is not None and found["reason"] == reason
