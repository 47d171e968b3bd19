"""A light load generator for tests of overload, chaos and soak: prepared bytes out, status and time back.

On a small machine the generator eats of the same cores as the server, so it must cost little: about 0.1 ms a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np
import tritonclient.grpc
from tritonclient.grpc import service_pb2

from contract.tensors import CLASSIFIER, LOGITS, TEXT

METHOD = "/inference.GRPCInferenceService/ModelInfer"
OK = "OK"


@dataclass(frozen=True)
class Sent:
    """One request and what became of it."""

    at_s: float
    """When it was due, from the start of its phase: a late generator makes an answer late, as a real client would see it."""
    code: str
    latency_s: float
    message: str = ""


def request_bytes(texts: Sequence[str]) -> bytes:
    """A serialised inference request for these texts, at most the server's batch limit of them."""
    array = np.array([[text.encode()] for text in texts], dtype=np.object_)
    tensor = tritonclient.grpc.InferInput(TEXT, list(array.shape), "BYTES").set_data_from_numpy(array)
    request = service_pb2.ModelInferRequest(model_name=CLASSIFIER)
    request.inputs.extend([tensor._get_tensor()])
    request.raw_input_contents.extend([tensor._get_content()])
    request.outputs.add(name=LOGITS)
    data: bytes = request.SerializeToString()
    return data


class Generator:
    """Sends one request again and again over `channels` connections."""

    def __init__(self, url: str, request: bytes, *, timeout_s: float, channels: int = 2) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all share one connection
        self._channels = [grpc.aio.insecure_channel(url, options=options) for _ in range(channels)]
        self._calls = [channel.unary_unary(METHOD) for channel in self._channels]
        self._request, self._timeout_s = request, timeout_s

    async def send(self, due: float, started: float, request: bytes | None = None) -> Sent:
        """One request, the generator's own unless another is given, due at `due` of time.monotonic()."""
        code, message = await self._ask(due, request or self._request)
        return Sent(due - started, code, time.monotonic() - due, message)

    async def _ask(self, due: float, request: bytes) -> tuple[str, str]:
        """(status, what the server says to it)"""
        try:
            await self._calls[int(due * 1e6) % len(self._calls)](request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return OK, ""

    async def open_loop(self, rate: float, seconds: float) -> list[Sent]:
        """`rate` requests a second, evenly spaced, whatever the answers do."""
        started = time.monotonic()
        tasks: list[asyncio.Task[Sent]] = []
        for number in range(round(rate * seconds)):
            due = started + number / rate
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            tasks.append(asyncio.create_task(self.send(due, started)))
            if number % 50 == 0:
                await asyncio.sleep(0)  # a generator that is behind must still read answers
        return list(await asyncio.gather(*tasks))

    async def closed_loop(self, clients: int, seconds: float) -> list[Sent]:
        """`clients` callers, each with one request under way at any time."""
        started = time.monotonic()

        async def caller() -> list[Sent]:
            done = []
            while time.monotonic() - started < seconds:
                done.append(await self.send(time.monotonic(), started))
            return done

        return [sent for calls in await asyncio.gather(*(caller() for _ in range(clients))) for sent in calls]

    async def close(self) -> None:
        """Give the connections back."""
        for channel in self._channels:
            await channel.close()
