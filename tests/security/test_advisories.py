"""One test for each class of advisory that Triton had, against the proxy in front of the real server.

Each ends with a right answer from the same server process (`tests/security/conftest.py`).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from clients import connect
from serving.proxy import LARGEST_BODY
from tests.clients.sockets import closed_url
from tests.security.behind import Proxied, needs_nginx, pretended, proxying
from tests.security.wire import INFER, connected, post, receive, request, send, texts_body

pytestmark = [pytest.mark.server, needs_nginx]

KEY = "triton_python_backend_shm_region_1a2b"
LEAK = f"Failed to increase the shared memory pool size for key '{KEY}' to 67108864 bytes; /opt/tritonserver"


@pytest.fixture(autouse=True)
def _still_answers(proxied: Proxied) -> Iterator[None]:
    yield
    with connect(proxied.http_url, "http") as classifier:
        assert classifier.classify(["the cat runs"])[0].label in {"animal", "plant"}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/models/..%2f..%2fetc/load",
        "/v2/repository/models/../../etc/load",
        "/v2/models/bert_classifier/../../repository/index",
        "/v2/models/bert_classifier/infer/../config",
        "/v2/models/bert_classifier%2f..%2fbert_engine/infer",
        "/v2/models/bert_classifier/versions/1%2f..%2f..%2f../infer",
        "/v2/models/bert_classifier/infer%00/../../../repository/index",
        "/v2/models/bert_classifier/versions/99999999999999999999/infer",
        "/v2/models/bert_classifier/versions/-1/infer",
        "/v2/models/bert_classifier/infer%0a",
        "//v2//repository//index",
        "/v2/models/BERT_classifier/infer",
    ],
)
def test_path_traversal_and_odd_model_names_reach_nothing(proxied: Proxied, path: str) -> None:
    reply = send(proxied.http_url, request("POST", path, texts_body("the cat runs")))
    assert reply.status in {400, 404}
    assert b"outputs" not in reply.body


def test_a_control_call_cannot_bring_files_in(proxied: Proxied) -> None:
    files = {"parameters": {"config": "{}", "file:../../../../tmp/x": "eA=="}}
    path = "/v2/repository/models/bert_classifier/load"
    assert send(proxied.http_url, request("POST", path, json.dumps(files).encode())).status == 404
    assert send(proxied.state.http_url, request("POST", path, json.dumps(files).encode())).status == 403


@pytest.mark.parametrize("where", ["input", "output"])
def test_shared_memory_is_not_offered_and_its_names_are_not_told(proxied: Proxied, where: str) -> None:
    region = {"shared_memory_region": "guessed", "shared_memory_byte_size": 8}
    if where == "input":
        body = {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "parameters": region}]}
    else:
        body = json.loads(texts_body("the cat runs")) | {"outputs": [{"name": "logits", "parameters": region}]}
    reply = post(proxied.http_url, json.dumps(body).encode())
    assert (reply.status, reply.error().startswith("not found")) == (404, True)
    with tritonclient.grpc.InferenceServerClient(proxied.grpc_url) as client:
        tensor = tritonclient.grpc.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_shared_memory("guessed", 8)
        with pytest.raises(InferenceServerException, match="not found: no such model"):
            client.infer("bert_classifier", [tensor], client_timeout=60)


class _Leaky(BaseHTTPRequestHandler):
    """A server whose error names what is inside."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"error": LEAK}).encode()
        self.send_response(500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def leaky_http() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Leaky) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_key_of_a_shared_memory_region_in_an_error_stays_inside(tmp_path: Path) -> None:
    with leaky_http() as http:
        state = pretended(tmp_path, http=http, grpc=closed_url())
        with proxying(tmp_path, state) as proxy:
            reply = post(proxy.http_url, texts_body("the cat runs"))
    assert reply.status == 500
    assert reply.error() == "the request could not be read as JSON of the v2 protocol, or the server failed on it"


CODES = ["INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE", "NOT_FOUND"]


def leaky_call(message: bytes, context: grpc.ServicerContext) -> None:
    """Fail with the code that the message names."""
    context.abort(grpc.StatusCode[message.decode()], LEAK)


def test_the_same_over_grpc_whatever_the_code(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(leaky_call)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    errors = {}
    try:
        state = pretended(tmp_path, http=closed_url(), grpc=f"127.0.0.1:{port}")
        with proxying(tmp_path, state) as proxy, grpc.insecure_channel(proxy.grpc_url) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for code in CODES:
                with pytest.raises(grpc.RpcError) as raised:
                    infer(code.encode(), timeout=60)
                errors[code] = raised.value
    finally:
        server.stop(None).wait()
    assert [error.code().name for error in errors.values()] == CODES
    assert all(error.details() for error in errors.values())
    told = " ".join(error.details() for error in errors.values())
    assert not any(name in told for name in (KEY, "shared memory", "/opt"))


def test_a_step_called_by_its_name_tells_nothing_of_its_inside(proxied: Proxied) -> None:
    with tritonclient.grpc.InferenceServerClient(proxied.grpc_url) as client:
        ids, mask = (tritonclient.grpc.InferInput(name, [1, 4], "INT32") for name in ("input_ids", "attention_mask"))
        ids.set_data_from_numpy(np.array([[1, 2**30, -7, 3]], np.int32))
        mask.set_data_from_numpy(np.ones((1, 4), np.int32))
        with pytest.raises(InferenceServerException, match=r"this is no valid request|could not answer") as raised:
            client.infer("bert_engine", [ids, mask], client_timeout=60)
    assert not any(word in raised.value.message().lower() for word in ("onnx", "node", "embed"))


def test_chunked_bodies_are_refused(proxied: Proxied) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in texts_body("the cat runs")) + b"0\r\n\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: triton\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    reply = send(proxied.http_url, head + chunks)
    assert (reply.status, reply.error()) == (411, "chunked bodies are not taken: send Content-Length")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "identity, gzip", "x:"])
def test_compressed_bodies_are_refused_however_small_they_are(proxied: Proxied, encoding: str) -> None:
    bomb = gzip.compress(b" " * 2**20, 9)
    reply = post(proxied.http_url, bomb, Content_Encoding=encoding)
    assert (reply.status, reply.error()) == (415, "compressed bodies are not taken: send it without Content-Encoding")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_messages_are_refused(proxied: Proxied, algorithm: str) -> None:
    with tritonclient.grpc.InferenceServerClient(proxied.grpc_url) as client:
        tensor = tritonclient.grpc.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["a" * 100_000]], dtype=np.object_))
        with pytest.raises(InferenceServerException, match="compressed messages are not taken"):
            client.infer("bert_classifier", [tensor], client_timeout=60, compression_algorithm=algorithm)


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (str(LARGEST_BODY + 1), 413),
        (str(2**62), 413),
        (str(2**64 + 5), 400),
        ("9" * 40, 400),
        ("-1", 400),
        ("+5", 400),
        ("5x", 400),
    ],
)
def test_the_length_of_a_body_is_judged_before_the_body_is_read(proxied: Proxied, length: str, status: int) -> None:
    assert post(proxied.http_url, b"", Content_Length=length, Inference_Header_Content_Length="5").status == status


def test_a_message_of_grpc_over_the_limit_is_refused(proxied: Proxied) -> None:
    with tritonclient.grpc.InferenceServerClient(proxied.grpc_url) as client:
        tensor = tritonclient.grpc.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["a" * LARGEST_BODY]], dtype=np.object_))
        with pytest.raises(InferenceServerException) as raised:
            client.infer("bert_classifier", [tensor], client_timeout=60)
    assert raised.value.status() in {"StatusCode.RESOURCE_EXHAUSTED", "StatusCode.UNAVAILABLE"}  # or the stream is reset first


@pytest.mark.parametrize("value", ["-5", "99999999999999999999", "zz", "0x10", "5,5", " 5 5", "100000"])
def test_a_length_of_the_json_part_that_is_none_is_refused(proxied: Proxied, value: str) -> None:
    assert post(proxied.http_url, texts_body("the cat runs"), Inference_Header_Content_Length=value).status == 400


def test_a_length_of_the_json_part_beyond_the_body_is_refused_by_the_server(proxied: Proxied) -> None:
    reply = post(proxied.http_url, texts_body("the cat runs"), Inference_Header_Content_Length="99999")
    assert (reply.status, "inference header size" in reply.error()) == (400, True)


DEEP: dict[str, Callable[[int], bytes]] = {
    "arrays": lambda size: b"[" * size,
    "closed arrays": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "data": lambda size: _around(b'"data":', (size - 80) // 2),
    "objects": lambda size: b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6),
}


def _around(key: bytes, levels: int) -> bytes:
    tensor = b'{"inputs":[{"name":"TEXT","shape":[1,1],"datatype":"BYTES",' + key
    return tensor + b"[" * levels + b'"a"' + b"]" * levels + b"}]}"


@pytest.mark.parametrize("kind", DEEP)
def test_the_deepest_json_that_is_let_through_does_not_end_the_server(proxied: Proxied, kind: str) -> None:
    body = DEEP[kind](255_990)
    assert 255_000 < len(body) < 256_000
    assert post(proxied.http_url, body).status in {200, 400, 500}


def test_longer_json_is_refused(proxied: Proxied) -> None:
    reply = send(proxied.http_url, request("POST", INFER, b"", Content_Length="256000"))
    assert (reply.status, "JSON ends at 256000 bytes" in reply.error()) == (413, True)


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\n continued: yes\r\nTransfer-Encoding:\tchunked",
        "Transfer_Encoding: chunked\r\nContent-Length: 99999999999",
    ],
)
def test_a_second_request_cannot_be_smuggled_in(proxied: Proxied, headers: str) -> None:
    hidden = request("GET", "/v2/repository/index", triton_control=proxied.state.control_token)
    with connected(proxied.http_url) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: triton\r\n{headers}\r\n\r\n".encode() + b"0\r\n\r\n" + hidden)
        reply = receive(connection)
    assert reply.status in {400, 411, 413, 501}
    assert b"bert_engine" not in reply.body + reply.rest
