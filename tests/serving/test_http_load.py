"""`tests.serving.http_load`: answers in pieces, errors, late ones, lost connections; against a server of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.clients.sockets import closed_url
from tests.serving.http_load import HttpGenerator, http_request
from tests.serving.load import OK, Sent

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
REQUEST = http_request(["the old cat"])


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """The body of one whole request."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return await reader.readexactly(length)


def ask(answer: Answer, count: int = 1, timeout_s: float = 20.0) -> tuple[list[Sent], int]:
    """(what became of so many requests, one after the other; how many connections they took)"""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    async def run() -> tuple[list[Sent], int]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        generator = HttpGenerator(f"127.0.0.1:{port}", REQUEST, timeout_s=timeout_s)
        try:
            sent = [await generator.send(asyncio.get_running_loop().time(), 0.0) for _ in range(count)]
            return sent, len(generator._open)
        finally:
            await generator.close()
            server.close()

    return asyncio.run(run())


async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(3):
        await read_request(reader)
        for piece in (b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 4\r\n\r", b"\n12", b"34"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)


async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\noverloaded")
    await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1")
    await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def test_an_answer_in_pieces_is_one_and_its_connection_is_used_again() -> None:
    sent, connections = ask(in_pieces, 3)
    assert [one.code for one in sent] == [OK] * 3
    assert connections == 1


@pytest.mark.parametrize(
    ("answer", "code", "said"), [(full, "503", "overloaded"), (hang_up, "LOST", "the connection was lost")]
)
def test_errors_and_lost_connections_are_told(answer: Answer, code: str, said: str) -> None:
    (sent,), _ = ask(answer)
    assert (sent.code, sent.message) == (code, said)


def test_no_answer_in_time_is_told() -> None:
    (sent,), _ = ask(silent, timeout_s=0.2)
    assert (sent.code, sent.message) == ("TIMEOUT", "no answer within 0.2 s")


def test_nobody_there_is_told() -> None:
    async def run() -> Sent:
        return await HttpGenerator(closed_url(), REQUEST, timeout_s=20).send(0.0, 0.0)

    assert asyncio.run(run()).code == "LOST"
