"""transformers' pipeline behind FastAPI and uvicorn.

    python -m loadtests.peers.apps.fastapi_server PORT

As in most tutorials each request is its own call of the pipeline, in FastAPI's thread pool; with PEER_MAX_BATCH above 1
requests that are in flight together share one call.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from loadtests.peers.apps.model import TextClassifier, max_batch, max_wait_s

classifier = TextClassifier()
Waiting = tuple[str, asyncio.Future[str]]
waiting: asyncio.Queue[Waiting] = asyncio.Queue()


class Question(BaseModel):
    """The body of a request."""

    text: str


async def run_batches() -> None:
    """Take what waits, at most `max_batch()` texts, and answer it in one call, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        batch = [await waiting.get()]
        until = loop.time() + max_wait_s()
        while len(batch) < max_batch():
            try:
                batch.append(await asyncio.wait_for(waiting.get(), max(until - loop.time(), 0)))
            except TimeoutError:
                break
        try:
            labels = await asyncio.to_thread(classifier.classify, [text for text, _ in batch])
        except Exception as error:  # each caller gets it; the loop goes on
            for _, answer in batch:
                answer.set_exception(error)
            continue
        for (_, answer), label in zip(batch, labels, strict=True):
            if not answer.cancelled():
                answer.set_result(label)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The batching task lives as long as the server."""
    task = asyncio.create_task(run_batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


def classify_alone(question: Question) -> dict[str, str]:
    """One text, one call."""
    return {"label": classifier.classify([question.text])[0]}


async def classify_together(question: Question) -> dict[str, str]:
    """One text, in a call that others share."""
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    await waiting.put((question.text, answer))
    return {"label": await answer}


app.post("/classify")(classify_alone if max_batch() == 1 else classify_together)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
