"""A peer as the target of a generator: JSON over HTTP on asyncio, its requests serialised before the test begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import aiohttp

from loadtests.record import Requests


class WrongAnswer(Exception):  # noqa: N818 - a kind of failure, counted under its name
    """The peer answered, but not with a label."""


class Refused(Exception):  # noqa: N818
    """The peer answered with an error; the class is named in results, so 5xx and 4xx stay together."""


class HttpTarget:
    """Sends requests that were made beforehand; an async context manager. `send` is a `loadtests.record.Send`."""

    def __init__(
        self,
        url: str,
        requests: Requests,
        *,
        body: Callable[[str], Any],
        label: Callable[[Any], str],
        timeout_s: float,
    ) -> None:
        """Serialise every request: `body` makes the JSON of a text, `label` reads that of an answer."""
        self._url, self._label, self._timeout_s = url, label, timeout_s
        self._bytes = {text: json.dumps(body(text)).encode() for texts in requests for text in texts}

    async def __aenter__(self) -> HttpTarget:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # as many connections as requests in flight
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers={"Content-Type": "application/json"},
        )
        return self

    async def label_of(self, text: str) -> str:
        """The label of one text. Raises Refused, WrongAnswer or aiohttp's errors."""
        async with self._session.post(self._url, data=self._bytes[text]) as response:
            content = await response.read()
            if response.status != 200:
                raise Refused(f"{response.status}: {content[:200].decode(errors='replace')}")
        try:
            return self._label(json.loads(content))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"{content[:200]!r}: {error!r}") from error

    async def send(self, texts: Sequence[str]) -> str:
        """One request; peers name no release."""
        (text,) = texts
        await self.label_of(text)
        return ""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()
