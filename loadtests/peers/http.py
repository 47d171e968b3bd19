"""A peer as the target of a generator: JSON over HTTP on asyncio, its requests serialised before the test begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import aiohttp

from loadtests.record import Requests


class NoLabelError(Exception):
    """The peer gave no label; the subclasses say why, and results count them by name."""


class UnreachableError(NoLabelError):
    """It did not answer."""


class StatusError(NoLabelError):
    """It answered with an error."""


class AnswerError(NoLabelError):
    """It answered with something else."""


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
        """The label of one of the texts. Raises NoLabelError."""
        try:
            async with self._session.post(self._url, data=self._bytes[text]) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{self._url}: {error!r}") from error
        if response.status != 200:
            raise StatusError(f"{response.status}: {content[:200].decode(errors='replace')}")
        try:
            return self._label(json.loads(content))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise AnswerError(f"{content[:200]!r}: {error!r}") from error

    async def send(self, texts: Sequence[str]) -> str:
        """One request of one text; peers name no release, so "" is given. Raises as `label_of` does."""
        (text,) = texts
        await self.label_of(text)
        return ""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()
