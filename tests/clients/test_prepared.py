"""`clients.prepared`: the bytes are those of the client's own request, and an answer that is not one a text is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

from clients import BadRequest, ServerError
from clients.payload import encode_texts
from clients.prepared import release_in, release_in_json, request_bytes, request_json
from clients.wire import request_of
from contract.tensors import CLASSIFIER, LOGITS, MAX_TEXT_BYTES, RELEASE, TRUNCATED


@pytest.mark.parametrize("texts", [["a"], ["naïve 木", "two\nlines", "x" * 1000]])
def test_the_request_is_the_one_that_the_client_sends(texts: list[str]) -> None:
    asked = request_of(tritonclient.grpc, encode_texts(texts), classes=True, request_id="")
    options = {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": None}
    expected = _get_inference_request(model_name=CLASSIFIER, model_version="", parameters=None, **asked, **options)
    assert service_pb2.ModelInferRequest.FromString(request_bytes(texts)) == expected


@pytest.mark.parametrize("texts", [["a"], ["naïve 木", "two\nlines"]])
def test_the_json_asks_for_the_same(texts: list[str]) -> None:
    asked, message = json.loads(request_json(texts)), service_pb2.ModelInferRequest.FromString(request_bytes(texts))
    (tensor,), (same,) = asked["inputs"], message.inputs
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == (same.name, same.datatype, list(same.shape))
    assert tensor["data"] == texts
    assert [one["name"] for one in asked["outputs"]] == [one.name for one in message.outputs]
    classes = message.outputs[0].parameters["classification"].int64_param
    assert asked["outputs"][0]["parameters"] == {"classification": classes}
    with pytest.raises(BadRequest, match="text 1 is empty"):
        request_json(["a", ""])


def test_texts_that_cannot_be_classified_are_refused_as_the_client_does() -> None:
    with pytest.raises(BadRequest, match="text 1 is empty"):
        request_bytes(["a", ""])
    with pytest.raises(BadRequest, match="at most"):
        request_bytes(["x" * (MAX_TEXT_BYTES + 1)])


def answer(rows: int, *names: str) -> bytes:
    response = service_pb2.ModelInferResponse()
    for name in names:
        response.outputs.add(name=name, shape=[rows, 1])
        response.raw_output_contents.append(b"\3\0\0\0r-1" * rows if name == RELEASE else b"")
    return bytes(response.SerializeToString())


def test_the_release_is_found_whatever_the_order_of_the_outputs() -> None:
    assert release_in(answer(2, LOGITS, TRUNCATED, RELEASE), 2) == "r-1"
    assert release_in(answer(2, RELEASE, LOGITS, TRUNCATED), 2) == "r-1"


@pytest.mark.parametrize("names", [(LOGITS, TRUNCATED), (LOGITS, TRUNCATED, RELEASE, "more"), ()])
def test_an_answer_without_the_three_outputs_is_an_error(names: tuple[str, ...]) -> None:
    with pytest.raises(ServerError, match="1 texts were sent, and the answer has the shapes"):
        release_in(answer(1, *names), 1)


def test_an_answer_of_too_many_rows_is_an_error() -> None:
    with pytest.raises(ServerError, match="2 texts were sent"):
        release_in(answer(3, LOGITS, TRUNCATED, RELEASE), 2)


def test_an_answer_in_json_is_judged_alike() -> None:
    def made(rows: int, *names: str) -> bytes:
        outputs: list[dict[str, Any]] = [{"name": name, "shape": [rows, 1], "data": ["r-1"] * rows} for name in names]
        return json.dumps({"outputs": outputs}).encode()

    assert release_in_json(made(2, RELEASE, LOGITS, TRUNCATED), 2) == "r-1"
    for wrong in (made(3, RELEASE, LOGITS, TRUNCATED), made(2, RELEASE, LOGITS)):
        with pytest.raises(ServerError, match="2 texts were sent, and the answer has the shapes"):
            release_in_json(wrong, 2)
