"""transformers' pipeline as a Ray Serve deployment with Ray's own batching.

python -m loadtests.peers.apps.ray_server PORT
"""

from __future__ import annotations

import os
import sys
import threading

import ray
from ray import serve
from starlette.requests import Request

from loadtests.peers.apps.model import TextClassifier, max_batch, max_wait_s


@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
class Classifier:
    """One replica on all cores."""

    def __init__(self) -> None:
        self._classifier = TextClassifier()

    @serve.batch(max_batch_size=max_batch(), batch_wait_timeout_s=max_wait_s())  # type: ignore[untyped-decorator]
    async def classify(self, texts: list[str]) -> list[str]:
        """Ray collects the texts."""
        return self._classifier.classify(texts)

    async def __call__(self, request: Request) -> dict[str, str]:
        """POST {"text": ...}."""
        return {"label": await self.classify((await request.json())["text"])}


def main() -> None:
    """Serve until killed."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PEER_") or name == "PYTHONPATH"}
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": settings})
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Classifier.bind(), route_prefix="/classify")  # type: ignore[attr-defined]  # the decorator adds it
    threading.Event().wait()


if __name__ == "__main__":
    main()
