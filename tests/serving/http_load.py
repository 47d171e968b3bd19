"""The load generator of `tests.serving.load` over HTTP/1.1: less than half of the CPU time that gRPC takes in Python.

Where generator and server share the cores and most requests are refused, that is what the server has left for the others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from clients.prepared import INFER_PATH
from contract.tensors import LOGITS, TEXT
from tests.serving.load import OK, Generator

LOST = "the connection was lost"


def http_request(texts: Sequence[str]) -> bytes:
    """A whole inference request for these texts, head and JSON."""
    tensor = {"name": TEXT, "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": LOGITS}]}).encode()
    head = f"POST {INFER_PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: asyncio.WriteTransport | None = None

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send it; its (status, body) to come. The future fails with OSError when the connection is lost."""
        self.answer = asyncio.get_running_loop().create_future()
        self.received.clear()
        if self.transport is None:
            self.answer.set_exception(OSError(LOST))
        else:
            self.transport.write(request)
        return self.answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """A piece of an answer, or the whole of it."""
        self.received += data
        head, found, body = bytes(self.received).partition(b"\r\n\r\n")
        if not found or self.answer is None or self.answer.done():
            return
        status, *lines = head.split(b"\r\n")
        fields = dict(line.lower().split(b":", 1) for line in lines)
        if len(body) >= int(fields[b"content-length"]):
            self.answer.set_result((int(status.split()[1]), body))

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing comes any more."""
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(OSError(error or LOST))


class HttpGenerator(Generator):
    """As many connections as requests are under way; idle ones are used again, the latest first."""

    def __init__(self, url: str, request: bytes, *, timeout_s: float) -> None:
        self._host, port = url.rsplit(":", 1)
        self._port, self._request, self._timeout_s = int(port), request, timeout_s
        self._idle: list[Connection] = []
        self._open: list[Connection] = []

    async def _ask(self, due: float, request: bytes) -> tuple[str, str]:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = self._idle.pop() if self._idle else await self._connect()
                status, body = await connection.ask(request)
        except TimeoutError:
            return "TIMEOUT", f"no answer within {self._timeout_s:g} s"
        except OSError as error:
            return "LOST", str(error)
        self._idle.append(connection)
        return (OK, "") if status == 200 else (str(status), body.decode(errors="replace"))

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        self._open.append(connection)
        return connection

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._open:
            if connection.transport is not None:
                connection.transport.close()
        await asyncio.sleep(0)  # in which they are
