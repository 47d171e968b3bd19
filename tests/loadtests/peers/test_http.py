"""`loadtests.peers.http`: a label, or a failure that says of what kind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from loadtests.peers.http import AnswerError, HttpTarget, StatusError, UnreachableError
from tests.clients.sockets import closed_url

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def target(url: str, *texts: str) -> HttpTarget:
    requests = [(text,) for text in texts]
    return HttpTarget(
        url, requests, body=lambda text: {"input": [text]}, label=lambda answer: str(answer["data"][0]), timeout_s=30
    )


def ask(handler: Handler, *texts: str) -> list[str]:
    """The labels that a server with this handler gives."""

    async def run() -> list[str]:
        app = web.Application()
        app.router.add_post("/classify", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with target(f"http://127.0.0.1:{port}/classify", *texts) as opened:
                assert await opened.send(texts[:1]) == ""
                return [await opened.label_of(text) for text in texts]
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_each_text_travels_in_the_peers_own_form() -> None:
    async def answer(request: web.Request) -> web.Response:
        content = await request.json()
        return web.json_response({"data": [content["input"][0].upper()]})

    assert ask(answer, "eins", "zwei \N{SNOWMAN}") == ["EINS", "ZWEI \N{SNOWMAN}"]


def test_an_error_of_the_server_is_told_with_its_words() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=503, text="queue full")

    with pytest.raises(StatusError, match="503: queue full"):
        ask(answer, "a")


@pytest.mark.parametrize("text", ["<html>", "{}", '{"data": []}', '{"data": 3}'])
def test_an_answer_without_a_label_is_an_error(text: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text)

    with pytest.raises(AnswerError):
        ask(answer, "a")


def test_nobody_there_is_an_error() -> None:
    async def run() -> None:
        async with target(f"http://{closed_url()}/classify", "a") as opened:
            await opened.send(["a"])

    with pytest.raises(UnreachableError, match="/classify"):
        asyncio.run(run())
