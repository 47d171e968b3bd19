"""Clients of a served classifier, over gRPC and HTTP, sync and asyncio; docs/clients.md shows more.

Typical use::

    from clients import RetryPolicy, connect, connect_async

    with connect("127.0.0.1:8001", "grpc", retry=RetryPolicy()) as classifier:
        for prediction in classifier.classify(["How do I sort a list?"]):
            print(prediction.label, prediction.score)

    async with connect_async("127.0.0.1:8001", in_flight=16) as classifier:
        predictions = await classifier.classify(many_texts)
"""

from clients.async_classifier import AsyncClassifier, connect_async
from clients.classifier import Classifier, connect
from clients.errors import BadRequest, ClassifierError, Rejected, ServerError, TimedOut, Unavailable, Untrusted
from clients.payload import Features
from clients.prediction import Prediction
from clients.retry import RetryPolicy
from clients.tls import Tls

__all__ = [
    "AsyncClassifier",
    "BadRequest",
    "Classifier",
    "ClassifierError",
    "Features",
    "Prediction",
    "Rejected",
    "RetryPolicy",
    "ServerError",
    "TimedOut",
    "Tls",
    "Unavailable",
    "Untrusted",
    "connect",
    "connect_async",
]
