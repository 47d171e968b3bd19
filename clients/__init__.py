"""Clients of a served classifier, over gRPC and HTTP.

Typical use::

    from clients import connect

    with connect("127.0.0.1:8001", "grpc") as classifier:
        for prediction in classifier.classify(["How do I sort a list?"]):
            print(prediction.label, prediction.score)
"""

from clients.classifier import Classifier, Prediction, connect
from clients.errors import BadRequest, ClassifierError, Rejected, ServerError, TimedOut, Unavailable

__all__ = [
    "BadRequest",
    "Classifier",
    "ClassifierError",
    "Prediction",
    "Rejected",
    "ServerError",
    "TimedOut",
    "Unavailable",
    "connect",
]
