"""A process that answers Triton's inference calls at once, for tests that stop it: a real server's supervisor would replace it.

    python -m tests.loadtests.fake_server

Prints its address, and runs until its standard input is closed.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from clients.prepared import INFER_METHOD
from contract.tensors import LOGITS, RELEASE, TRUNCATED


def answer(request: Any, context: grpc.ServicerContext) -> Any:
    """One row of nothing for each text."""
    rows = request.inputs[0].shape[0]
    parts = {LOGITS: ("BYTES", b"\5\0\0\0" + b"0:0:a"), TRUNCATED: ("BOOL", b"\0"), RELEASE: ("BYTES", b"\4\0\0\0fake")}
    response = service_pb2.ModelInferResponse(model_name=request.model_name)
    for name, (kind, row) in parts.items():
        response.outputs.add(name=name, datatype=kind, shape=[rows, 1])
        response.raw_output_contents.append(row * rows)
    return response


def main() -> None:
    """Serve; see the module docstring."""
    service, method = INFER_METHOD.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=service_pb2.ModelInferResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
