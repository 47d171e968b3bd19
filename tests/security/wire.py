"""HTTP as bytes on a socket, with a deadline: what a library would refuse to send, and whatever comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

INFER = "/v2/models/bert_classifier/infer"
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, or what there was of one."""

    status: int
    """0 when the connection was closed without an answer."""
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    rest: bytes = b""
    """What came after the answer on the same connection."""

    def error(self) -> str:
        """The message of an error in JSON."""
        return str(json.loads(self.body)["error"])


def connected(url: str) -> socket.socket:
    """A connection to "host:port" on which nothing takes longer than the deadline."""
    host, _, port = url.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def send(url: str, data: bytes) -> Reply:
    """Send `data` and read until the peer closes or has answered."""
    with connected(url) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early; the answer may still be there
            connection.sendall(data)
        return receive(connection)


def receive(connection: socket.socket, *, method: str = "POST") -> Reply:
    """Read one answer. A reset connection counts as closed."""
    data = b""
    deadline = time.monotonic() + DEADLINE_S
    while (parsed := parse(data, method)) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"no whole answer within {DEADLINE_S:g} s, only {data[:200]!r}")
        try:
            piece = connection.recv(65_536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            return Reply(0, {}, data)
        data += piece
    return parsed


def parse(data: bytes, method: str = "POST") -> Reply | None:
    """The answer in `data`; None while it is not whole."""
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = int(first.split()[1])
    if headers.get("transfer-encoding") == "chunked":
        return _chunked(status, headers, body)
    length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
    return None if len(body) < length else Reply(status, headers, body[:length], body[length:])


def _chunked(status: int, headers: dict[str, str], data: bytes) -> Reply | None:
    whole = b""
    while True:
        size, separator, rest = data.partition(b"\r\n")
        if not separator or len(rest) < int(size, 16) + 2:
            return None
        if int(size, 16) == 0:
            return Reply(status, headers, whole, rest[2:])
        whole, data = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request; header names with underscores for hyphens, Content-Length added unless it is given."""
    lines = {"Host": "triton", "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def texts_body(*texts: str, **changes: Any) -> bytes:
    """The JSON body of an infer request, its tensor changed by `changes`."""
    tensor = {"name": "TEXT", "shape": [len(texts), 1], "datatype": "BYTES", "data": list(texts)} | changes
    return json.dumps({"inputs": [tensor]}).encode()


def post(url: str, body: bytes, path: str = INFER, **headers: str) -> Reply:
    """POST `body`."""
    return send(url, request("POST", path, body, **headers))
