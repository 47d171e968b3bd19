"""transformers' pipeline as a BentoML service, with BentoML's adaptive batching where PEER_MAX_BATCH is above 1.

bentoml serve loadtests.peers.apps.bentoml_service:Classifier --port PORT
"""

from __future__ import annotations

import bentoml  # type: ignore[import-not-found]  # in the peer's environment alone

from loadtests.peers.apps.model import TextClassifier, max_batch

BATCHING = {"batchable": True, "max_batch_size": max_batch(), "max_latency_ms": 60_000} if max_batch() > 1 else {}


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1000})
class Classifier:
    """One worker on all cores."""

    def __init__(self) -> None:
        self._classifier = TextClassifier()

    @bentoml.api(**BATCHING)  # type: ignore[untyped-decorator]
    def classify(self, texts: list[str]) -> list[str]:
        """With batching BentoML collects the texts of several requests, for as long as its own estimate says is worth it."""
        return self._classifier.classify(texts)
