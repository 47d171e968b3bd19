"""A page in a real headless Chromium, looked at over its DevTools protocol: console, requests, and what scripts find."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium")
START_TIMEOUT_S = 120
SWITCHES = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "remote-debugging-port=0"),
    "disable-dev-shm-usage",  # which is small in a container
)


@dataclass
class Page:
    """An open tab."""

    socket: aiohttp.ClientWebSocketResponse
    events: list[dict[str, Any]] = field(default_factory=list)
    """Everything the browser told unasked."""
    _number: int = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command and its result."""
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                message = json.loads((await self.socket.receive()).data)
                if message.get("id") == self._number:
                    assert "error" not in message, message
                    return message["result"]
                self.events.append(message)

    async def open(self, url: str, *, width: int, height: int = 900) -> None:
        """Load a page in a window of that size and wait until it is there."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(START_TIMEOUT_S):
            while await self.value("location.href !== 'about:blank' && document.readyState") != "complete":
                await asyncio.sleep(0.02)

    async def value(self, expression: str) -> Any:
        """What a script gives, waited for. An exception in it fails the test."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def scheme(self, name: str) -> None:
        """Prefer dark or light, as a system does."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def complaints(self) -> list[str]:
        """Errors and warnings of console and log, and exceptions."""
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown" or (
                event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in {"error", "warning", "assert"}
            ):
                found.append(json.dumps(parameters))
            if event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in {"error", "warning"}:
                found.append(json.dumps(parameters["entry"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Page]:
    """A browser with one empty tab, its profile in `folder`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *(f"--{switch}" for switch in SWITCHES), f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(folder / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session:
            address = await _tab(session, port)
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.kill()
        process.wait()


async def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (path.exists() and path.read_text().strip()):
        assert process.poll() is None and time.monotonic() < deadline, "chromium did not start"
        await asyncio.sleep(0.02)
    return int(path.read_text().splitlines()[0])


async def _tab(session: aiohttp.ClientSession, port: int) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
        if tabs:
            return str(tabs[0]["webSocketDebuggerUrl"])
        await asyncio.sleep(0.02)
    raise AssertionError("chromium has no tab")
