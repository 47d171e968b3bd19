"""Requests that are nearly right: valid ones, changed in a few places. The same random numbers give the same bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from tritonclient.grpc import service_pb2

from tests.security.wire import INFER, request

TEXTS = ["the cat runs", "a rose grows", "ünd mehr 😀", "x" * 500, "", " ", "\0", "a\u0301" * 20]
NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 0.5, 1e308, "", "a" * 5000, "\0", "../../etc",
    "%s%n", [], {}, [[]], [1, 1], [0], [-1, 1], [2**62, 4], {"a": {"a": {}}}, "BYTES", "INT32", "logits",
]  # fmt: skip
NUMBERS = [0, 1, 3, 4, 5, 6, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
PATHS = [
    INFER, INFER + "?x=1", "/v2/models/bert_classifier/versions/1/infer", "/v2/models/bert_candidate/infer",
    "/v2/models/bert_engine/infer", "/v2/health/ready", "/v2/models/bert_classifier/versions/2/infer", "/v2//models/x/../infer",
]  # fmt: skip
HEADERS = [
    "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: close",
    "Accept-Encoding: gzip",
    "Inference-Header-Content-Length: 7", "Content-Type: application/octet-stream", "triton-control: x", "Upgrade: h2c",
    "X: \x01",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Cookie: " + "c" * 4000, "X-Forwarded-For: ::1",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One request to send."""

    kind: str
    protocol: Literal["http", "grpc", "raw grpc"]
    data: bytes
    """HTTP: all bytes on the wire. gRPC: one message, or bytes in the place of HTTP/2."""
    method: str = "ModelInfer"


def case(random: Random) -> Case:
    """Any request."""
    make: Callable[[Random], Case] = random.choices([http_json, http_binary, http_head, grpc_fields, grpc_bytes, raw], WEIGHTS)[
        0
    ]
    return make(random)


WEIGHTS = [4, 4, 2, 4, 4, 1]


def http_json(random: Random) -> Case:
    """JSON whose values are exchanged, or whose bytes are."""
    texts = random.choices(TEXTS, k=random.choice([0, 1, 2, 64, 65]))
    body = json.dumps(_change(_document(texts), random)).encode()
    if random.random() < 0.3:
        body = flip(body, random)
    if random.random() < 0.1:
        body = _deep(body, random)
    return Case("JSON", "http", request("POST", random.choice(PATHS[:3]), body[:250_000]))


def http_binary(random: Random) -> Case:
    """Binary tensors whose lengths lie."""
    texts = random.choices(TEXTS, k=random.choice([1, 2, 64]))
    tensor = b"".join(_piece(text.encode(), random) for text in texts)
    size = len(tensor) if random.random() < 0.6 else random.choice(NUMBERS)
    document: dict[str, Any] = _document(texts)
    del document["inputs"][0]["data"]
    document["inputs"][0]["parameters"] = {"binary_data_size": size}
    head = json.dumps(_change(document, random) if random.random() < 0.3 else document).encode()
    body = head + (flip(tensor, random) if random.random() < 0.3 else tensor)
    length = len(head) if random.random() < 0.7 else random.choice([*NUMBERS, -1, len(head) - 1, len(body), len(body) + 1])
    return Case("binary tensor", "http", request("POST", INFER, body, Inference_Header_Content_Length=str(length)))


def http_head(random: Random) -> Case:
    """A request whose first lines are odd."""
    body = json.dumps(_document(["the cat runs"])).encode()
    method = random.choice(["POST", "GET", "HEAD", "PUT", "post", "PRI", "POST\t", ""])
    data = request(method, random.choice(PATHS), body)
    for line in random.sample(HEADERS, random.randint(0, 3)):
        data = data.replace(b"\r\n\r\n", f"\r\n{line}\r\n\r\n".encode(), 1)
    head, _, rest = data.partition(b"\r\n\r\n")
    return Case("head", "http", (flip(head, random) if random.random() < 0.5 else head) + b"\r\n\r\n" + rest)


def grpc_fields(random: Random) -> Case:
    """A message whose fields are exchanged."""
    message = _message(random)
    tensor = message.inputs[0]
    changes: list[Callable[[], Any]] = [
        lambda: setattr(message, "model_name", random.choice(["", "bert_engine", "bert_tokenizer", "../x", "n" * 3000])),
        lambda: setattr(message, "model_version", random.choice(["1", "2", "-1", "x", "9" * 40, "../1"])),
        lambda: setattr(message, "id", "i" * random.choice([1, 100, 100_000])),
        lambda: tensor.shape.__setitem__(random.randrange(2), random.choice([-1, 0, 2, 65, 2**31, 2**63 - 1])),
        lambda: setattr(tensor, "name", random.choice(["", "logits", "input_ids", "T" * 9000])),
        lambda: setattr(tensor, "datatype", random.choice(["", "INT32", "FP32", "BOOL", "BYTESBYTES"])),
        lambda: message.inputs.add().CopyFrom(tensor),
        lambda: message.raw_input_contents.append(b"\1\0\0\0a"),
        lambda: tensor.contents.bytes_contents.append(b"the cat"),
        lambda: setattr(tensor.parameters["shared_memory_region"], "string_param", random.choice(["", "bert", "/dev"])),
        lambda: setattr(tensor.parameters["shared_memory_byte_size"], "int64_param", random.choice([-1, 8, 2**62])),
        lambda: setattr(message.parameters["sequence_id"], "int64_param", random.choice([-1, 1, 2**62])),
        lambda: setattr(message.parameters["priority"], "string_param", "x"),
        lambda: setattr(message.outputs.add(), "name", random.choice(["logits", "", "no such output"])),
        lambda: setattr(_output(message).parameters["classification"], "int64_param", random.choice([-1, 0, 2, 2**40])),
    ]
    for change in random.choices(changes, k=random.randint(1, 3)):
        change()
    return Case("message", "grpc", message.SerializeToString())


def grpc_bytes(random: Random) -> Case:
    """A message whose bytes are exchanged, for any method that is let through."""
    method = random.choice(["ModelInfer", "ModelInfer", "ModelInfer", "ModelReady", "ServerLive", "ServerReady"])
    return Case("bytes of a message", "grpc", flip(_message(random).SerializeToString(), random), method)


def raw(random: Random) -> Case:
    """Bytes in the place of HTTP/2: its preface, or none, and frames of any length and type."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if random.random() < 0.8 else b""
    frames = b""
    for _ in range(random.randint(1, 6)):
        payload = random.randbytes(random.choice([0, 6, 8, 40]))
        length = len(payload) if random.random() < 0.8 else random.choice([0, 1, 2**14, 2**24 - 1])
        kind, flags, stream = random.randrange(12), random.choice([0, 1, 4, 5, 255]), random.choice([0, 1, 2, 3, 2**31])
        frames += struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
    return Case("frames", "raw grpc", preface + frames)


def flip(data: bytes, random: Random) -> bytes:
    """`data` with a few bytes exchanged, cut out, doubled or inserted."""
    changed = bytearray(data or b"\0")
    for _ in range(random.choice([1, 2, 8])):
        place = random.randrange(len(changed) + 1)
        match random.randrange(4):
            case 0 if place < len(changed):
                changed[place] = random.randrange(256)
            case 1:
                del changed[place : place + random.choice([1, 4, 50])]
            case 2:
                changed[place:place] = changed[place : place + 40]
            case _:
                changed[place:place] = random.choice([b"\0", b"\xff\xff\xff\xff", b"[" * 50, b'"', b"\\u0000", b"-", b"1e999"])
    return bytes(changed)


def _document(texts: list[str]) -> dict[str, Any]:
    tensor = {"name": "TEXT", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
    return {"id": "7", "inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]}


def _change(value: Any, random: Random) -> Any:
    """`value` with some of what is in it exchanged, left out or moved."""
    if random.random() < 0.06:
        return random.choice(NASTY)
    if isinstance(value, dict):
        changed = {key: _change(item, random) for key, item in value.items() if random.random() > 0.03}
        return changed | (
            {random.choice(["parameters", "x", "", "data"]): random.choice(NASTY)} if random.random() < 0.05 else {}
        )
    if isinstance(value, list) and len(value) < 10:
        return [_change(item, random) for item in value]
    return value


def _deep(body: bytes, random: Random) -> bytes:
    levels = random.choice([10, 1000, 100_000])
    return (
        body.replace(b"[", b"[" * levels, 1).replace(b"]", b"]" * levels, 1) if random.random() < 0.5 else body + b"[" * levels
    )


def _piece(text: bytes, random: Random) -> bytes:
    """A text as binary tensors hold it, now and then with a length that lies."""
    return struct.pack("<I", len(text) if random.random() < 0.9 else random.choice(NUMBERS)) + text


def _message(random: Random) -> Any:
    texts = random.choices(TEXTS, k=random.choice([1, 2, 64]))
    message = service_pb2.ModelInferRequest(model_name="bert_classifier")
    tensor = message.inputs.add(name="TEXT", datatype="BYTES")
    tensor.shape.extend([len(texts), 1])
    message.raw_input_contents.append(b"".join(_piece(text.encode(), random) for text in texts))
    return message


def _output(message: Any) -> Any:
    return message.outputs[0] if message.outputs else message.outputs.add(name="logits")
