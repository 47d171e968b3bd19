"""Flags of `python -m serving` that its gRPC port and its traces have: TLS, mutual TLS, OpenTelemetry."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from contract.command import UsageError
from serving.tls import GrpcTls
from serving.tracing import SERVICE, Tracing
from tests.security.certificates import Authority
from tests.security.wire import post, texts_body
from tests.served import deployed, start, stop, wait_until, wait_until_served

HERE = Path(__file__)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (GrpcTls, {"grpc_tls_cert": HERE}, "belong together"),
        (GrpcTls, {"grpc_tls_ca": HERE}, "--grpc-tls-ca needs both"),
        (GrpcTls, {"grpc_tls_cert": HERE, "grpc_tls_key": Path("/no/such.key")}, "--grpc-tls-key is /no/such.key"),
        (Tracing, {"trace_url": "localhost:4318"}, "--trace-url is 'localhost:4318'"),
        (Tracing, {"trace_url": "http://x,rate=1"}, "--trace-url is"),
        (Tracing, {"trace_rate": 0}, "--trace-rate is 0"),
    ],
)
def test_a_wrong_flag_is_named(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**options)


def test_without_flags_the_server_gets_none() -> None:
    assert GrpcTls().arguments() + Tracing().arguments() == []


class _Collector(BaseHTTPRequestHandler):
    """Takes traces as OTLP over HTTP and keeps their bytes."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(  # type: ignore[attr-defined]
            (self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        )
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(address, [(path, body)] received so far)."""
    received: list[tuple[str, bytes]] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        server.received = received  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        server.shutdown()
        thread.join()


def infer(url: str, **options: Any) -> None:
    with tritonclient.grpc.InferenceServerClient(url, **options) as client:
        tensor = tritonclient.grpc.InferInput("TEXT", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([["the cat runs"]], dtype=np.object_))
        client.infer("bert_classifier", [tensor], client_timeout=60)


@pytest.mark.server
def test_mutual_tls_and_traces_of_one_server(tmp_path: Path, release: Path) -> None:
    authority = Authority(tmp_path / "certificates", "authority")
    own, client = authority.issue("server"), authority.issue("client")
    flags = ["--grpc-tls-cert", str(own.certificate), "--grpc-tls-key", str(own.key), "--grpc-tls-ca", str(authority.path)]
    repository = deployed(tmp_path, release)
    with collector() as (url, received):
        process = start(repository, *flags, "--trace-url", url, "--trace-rate", "1")
        try:
            state = wait_until_served(process, repository)
            files = {"private_key": str(client.key), "certificate_chain": str(client.certificate)}
            infer(state.grpc_url, ssl=True, root_certificates=str(authority.path), **files)
            for options in ({}, {"ssl": True, "root_certificates": str(authority.path)}):
                with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
                    infer(state.grpc_url, **options)
            assert post(state.http_url, texts_body("the cat runs")).status == 200
            assert wait_until(lambda: {"bert_tokenizer", "bert_engine"} <= spans(received), seconds=60), received[:1]
        finally:
            stop(process)
    assert {path for path, _ in received} == {"/v1/traces"}
    assert any(SERVICE.encode() in body for _, body in received)


def spans(received: list[tuple[str, bytes]]) -> set[str]:
    """Names of the spans that have arrived; a snapshot, since more may come."""
    names = set()
    for _, body in list(received):
        for resource in json.loads(body)["resourceSpans"]:
            for scope in resource.get("scopeSpans", resource.get("instrumentationLibrarySpans", [])):
                names |= {span["name"] for span in scope["spans"]}
    return names
