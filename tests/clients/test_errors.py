"""`clients.errors`: one table from the statuses of two protocols to what a caller can do about it."""

from __future__ import annotations

import grpc
import pytest

import clients
from clients.errors import (
    BadRequest,
    ClassifierError,
    Rejected,
    ServerError,
    TimedOut,
    Unavailable,
    from_status,
)

GRPC = {
    "UNAVAILABLE": Unavailable,
    "NOT_FOUND": Unavailable,
    "INVALID_ARGUMENT": BadRequest,
    "DEADLINE_EXCEEDED": TimedOut,
    "INTERNAL": ServerError,
    "UNKNOWN": ServerError,
    "UNIMPLEMENTED": ServerError,
    "RESOURCE_EXHAUSTED": Rejected,
    "CANCELLED": Unavailable,
    "PERMISSION_DENIED": ServerError,
}
HTTP = {
    "400": BadRequest,
    "404": Unavailable,
    "413": BadRequest,
    "429": Rejected,
    "499": TimedOut,
    "502": Unavailable,
    "503": Unavailable,
    "504": TimedOut,
    "500": ServerError,
    "501": ServerError,
    "403": ServerError,
    "None": ServerError,
}


@pytest.mark.parametrize("status", GRPC)
def test_a_grpc_status_becomes_its_error(status: str) -> None:
    assert type(from_status(str(grpc.StatusCode[status]), "why", "host:1")) is GRPC[status]
    assert type(from_status(status, "why", "host:1")) is GRPC[status]


@pytest.mark.parametrize("status", HTTP)
def test_an_http_status_becomes_its_error(status: str) -> None:
    assert type(from_status(status, "why", "host:1")) is HTTP[status]


@pytest.mark.parametrize("status", ["StatusCode.UNAVAILABLE", "503", "StatusCode.INTERNAL", "500", "400"])
@pytest.mark.parametrize(
    "message",
    ["Exceeds maximum queue size", "in ensemble 'bert_classifier', Exceeds maximum queue size", "Request timeout expired"],
)
def test_a_full_queue_is_a_rejection_whatever_the_status(status: str, message: str) -> None:
    error = from_status(status, message, "host:1")
    assert type(error) is Rejected
    assert message in str(error)


@pytest.mark.parametrize("status", [*GRPC, *HTTP])
def test_the_message_names_the_url_and_says_what_the_server_said(status: str) -> None:
    assert str(from_status(status, "what it said", "host:8001")).startswith("host:8001: what it said")


def test_an_unknown_status_is_told() -> None:
    assert str(from_status("StatusCode.DATA_LOSS", "gone", "h:1")) == "h:1: gone (status DATA_LOSS)"


def test_one_base_catches_all_and_each_is_public() -> None:
    for kind in (Unavailable, TimedOut, Rejected, BadRequest, ServerError):
        assert issubclass(kind, ClassifierError)
        assert getattr(clients, kind.__name__) is kind
