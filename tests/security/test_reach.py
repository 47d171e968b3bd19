"""Who reaches what: clients infer and health, over both protocols, the operator the rest with a token."""

from __future__ import annotations

import json
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from clients import connect
from serving.state import CONTROL_HEADER, ServerState
from tests.security.behind import Proxied, needs_nginx
from tests.security.wire import post, request, send

pytestmark = pytest.mark.server

CLOSED = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/bert_engine/load"),
    ("POST", "/v2/repository/models/bert_classifier/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/any/register"),
    ("POST", "/v2/systemsharedmemory/unregister"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/models/bert_classifier/config"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2/models/bert_classifier/stats"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/models/bert_classifier/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
]
INSIDE = [
    ("GET", "/v2"),
    ("GET", "/v2/models/bert_classifier"),
    ("POST", "/v2/models/bert_engine/infer"),
    ("POST", "/v2/models/bert_tokenizer/versions/1/infer"),
    ("GET", "/v2/models/bert_engine/ready"),
    ("POST", "/v2/models/bert_classifier/generate"),
    ("GET", "/metrics"),
    ("GET", "/"),
]
CALLS: dict[str, Any] = {
    "load": lambda client, headers: client.load_model("bert_engine", headers=headers),
    "unload": lambda client, headers: client.unload_model("bert_engine", headers=headers),
    "index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "shared memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    "register": lambda client, headers: client.register_system_shared_memory("r", "/any", 8, headers=headers),
    "config": lambda client, headers: client.get_model_config("bert_classifier", headers=headers),
    "statistics": lambda client, headers: client.get_inference_statistics(headers=headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "logging": lambda client, headers: client.get_log_settings(headers=headers),
}


def call(url: str, name: str, headers: dict[str, str]) -> InferenceServerException | None:
    """What the call raised."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        try:
            CALLS[name](client, headers)
        except InferenceServerException as error:
            return error
    return None


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_without_the_token_the_server_itself_refuses_over_http(hardened: ServerState, method: str, path: str) -> None:
    for token in ("", "f" * 32):
        reply = send(hardened.http_url, request(method, path, b"{}", **{CONTROL_HEADER.replace("-", "_"): token}))
        assert (reply.status, "restricted" in reply.error()) == (403, True)


@pytest.mark.parametrize("name", CALLS)
def test_without_the_token_the_server_itself_refuses_over_grpc(hardened: ServerState, name: str) -> None:
    error = call(hardened.grpc_url, name, {})
    assert error is not None
    assert "restricted" in error.message()


def test_with_the_token_the_operator_is_let_in_over_both(hardened: ServerState) -> None:
    reply = send(hardened.http_url, request("POST", "/v2/repository/index", b"", triton_control=hardened.control_token))
    assert {model["name"] for model in json.loads(reply.body)} >= {"bert_classifier", "bert_engine", "bert_tokenizer"}
    key = f"triton-grpc-protocol-{CONTROL_HEADER}"
    assert call(hardened.grpc_url, "index", {key: hardened.control_token}) is None


@needs_nginx
@pytest.mark.parametrize(("method", "path"), CLOSED + INSIDE)
def test_over_the_proxy_not_even_the_token_opens_anything_else(proxied: Proxied, method: str, path: str) -> None:
    reply = send(proxied.http_url, request(method, path, b"{}", triton_control=proxied.state.control_token))
    assert reply.status == 404
    assert reply.error().startswith("not found: POST /v2/models/bert_classifier/infer")


@needs_nginx
@pytest.mark.parametrize("name", CALLS)
def test_over_the_proxy_no_other_call_of_grpc_is_served(proxied: Proxied, name: str) -> None:
    error = call(proxied.grpc_url, name, {f"triton-grpc-protocol-{CONTROL_HEADER}": proxied.state.control_token})
    assert error is not None
    assert error.status() == "StatusCode.UNIMPLEMENTED"


@needs_nginx
def test_over_grpc_alone_a_step_is_reached_by_its_name(proxied: Proxied) -> None:
    with tritonclient.grpc.InferenceServerClient(proxied.grpc_url) as client:
        ids, mask = (tritonclient.grpc.InferInput(name, [1, 4], "INT32") for name in ("input_ids", "attention_mask"))
        for tensor in (ids, mask):
            tensor.set_data_from_numpy(np.ones([1, 4], dtype=np.int32))
        answer = client.infer("bert_engine", [ids, mask], client_timeout=60).get_response()
    assert [output.name for output in answer.outputs] == ["logits"]  # docs/security.md says so, and what bounds it
    body = json.dumps(
        {
            "inputs": [
                {"name": name, "shape": [1, 1], "datatype": "INT32", "data": [1]} for name in ("input_ids", "attention_mask")
            ]
        }
    )
    assert post(proxied.http_url, body.encode(), "/v2/models/bert_engine/infer").status == 404


@needs_nginx
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_clients_are_answered_over_the_proxy_as_by_the_server(proxied: Proxied, protocol: Any) -> None:
    texts = ["the cat runs", "a rose ünd mehr", "x" * 3000]
    url = proxied.http_url if protocol == "http" else proxied.grpc_url
    with connect(url, protocol) as through, connect(proxied.state.grpc_url) as direct:
        through.check_ready()
        np.testing.assert_array_equal(through.logits(texts), direct.logits(texts))


@needs_nginx
@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/v2/models/bert_classifier/ready", "/v2/models/bert_classifier/versions/1/ready"],
)
def test_health_is_reached_and_only_read(proxied: Proxied, path: str) -> None:
    assert send(proxied.http_url, request("GET", path)).status == 200
    assert send(proxied.http_url, request("DELETE", path)).status == 405
    assert send(proxied.http_url, request("GET", path.replace("versions/1", "versions/99") + "?a=b")).status in {200, 400, 404}


@needs_nginx
def test_the_health_service_of_grpc_itself_is_reached(proxied: Proxied) -> None:
    with grpc.insecure_channel(proxied.grpc_url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=60) == b"\x08\x01"  # SERVING


@needs_nginx
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_infer_takes_post_alone(proxied: Proxied, method: str) -> None:
    assert post(proxied.http_url, b"{}").status != 405
    assert send(proxied.http_url, request(method, "/v2/models/bert_classifier/infer")).status == 405
