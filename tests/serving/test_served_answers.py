"""What clients get from the real server: the checkpoint's own answers, and clear refusals that harm nobody else."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from clients import BadRequest, Classifier, Unavailable, connect
from clients.transport import TRANSPORTS, ProtocolName
from contract.tensors import CLASSIFIER, MAX_BATCH_SIZE, MAX_TEXT_BYTES
from loadtests.latency import measure_latency
from loadtests.parity import measure_parity
from serving.control import ModelControl
from serving.state import CONTROL_HEADER, ServerState
from tests.served import wait_until
from tests.serving.load import OK, Generator, request_bytes
from tests.tiny import tiny_texts
from training.batches import encode
from training.checkpoint import Checkpoint
from training.evaluation import compute_logits

pytestmark = pytest.mark.server

TEXTS = [text for text, _ in tiny_texts(100)]
PROTOCOLS: list[ProtocolName] = ["grpc", "http"]


def url_of(server: ServerState, protocol: ProtocolName) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> ProtocolName:
    name: ProtocolName = request.param
    return name


@pytest.fixture
def classifier(server: ServerState, protocol: ProtocolName) -> Classifier:
    return connect(url_of(server, protocol), protocol)


def test_served_answers_are_the_checkpoints_over_both_protocols(server: ServerState, checkpoint: Checkpoint) -> None:
    encoded = encode(checkpoint.tokenizer, TEXTS, [])
    logits = compute_logits(checkpoint.model, encoded, tokens_per_batch=64)
    rows = [
        {"text": text, "label": checkpoint.labels[int(row.argmax())], "logits": row.tolist(), "truncated": cut}
        for text, row, cut in zip(TEXTS, logits, encoded.truncated, strict=True)
    ]
    assert any(encoded.truncated)
    assert not all(encoded.truncated)
    parity = measure_parity(rows, {"grpc": server.grpc_url, "http": server.http_url}, concurrency=8)
    assert parity.failures == []
    assert parity.max_logit_difference["grpc"] < 1e-4  # the tiny model's logits reach 10
    rows[3]["label"] = "mineral"
    rows[5]["logits"][0] += 0.01
    wrong = measure_parity(rows, {"grpc": server.grpc_url, "http": server.http_url}, concurrency=8)
    assert len(wrong.failures) == 4  # one wrong label and one wrong logit, seen over each protocol


def test_a_prediction_carries_label_scores_release_and_truncation(classifier: Classifier, checkpoint: Checkpoint) -> None:
    short, long = classifier.classify(["the cat sleeps", "cat " * 40])
    assert list(short.scores) == checkpoint.labels
    assert short.score == max(short.scores.values()) == short.scores[short.label]
    assert sum(short.scores.values()) == pytest.approx(1)
    assert re.fullmatch(r"first-[0-9a-f]{12}", short.release)
    assert (short.truncated, long.truncated) == (False, True)


def test_ten_thousand_texts_in_one_call_come_back_in_order(classifier: Classifier) -> None:
    texts = TEXTS * 100
    predictions = classifier.classify(texts)
    assert [prediction.text for prediction in predictions] == texts
    labels = [prediction.label for prediction in predictions[: len(TEXTS)]]
    assert [prediction.label for prediction in predictions] == labels * 100


def test_texts_of_every_kind_are_answered(classifier: Classifier) -> None:
    texts = ["a\0b", "\U0001f600", "漢字", "é́", "x" * MAX_TEXT_BYTES]  # NUL, emoji, CJK, combining marks, a long word
    assert len(classifier.classify(texts)) == len(texts)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "text 1 is empty"),
        (b" \n\t", "text 1 is empty"),
        (b"caf\xe9", "text 1 is not valid UTF-8"),
        (b"x" * 1_000_000, f"text 1 has 1000000 bytes; at most {MAX_TEXT_BYTES}"),
    ],
)
def test_the_server_itself_refuses_a_bad_text_by_name(
    server: ServerState, protocol: ProtocolName, raw: bytes, said: str
) -> None:
    """Past the client's own checks, as another client would send it."""
    transport = TRANSPORTS[protocol](url_of(server, protocol), 60.0)
    with pytest.raises(BadRequest, match=said):
        transport.infer(np.array([[b"a good one"], [raw]], dtype=object), classes=True)


def test_more_texts_than_the_limit_in_one_request_are_refused(server: ServerState, protocol: ProtocolName) -> None:
    transport = TRANSPORTS[protocol](url_of(server, protocol), 60.0)
    texts = np.array([[b"cat"]] * (MAX_BATCH_SIZE + 1), dtype=object)
    with pytest.raises(BadRequest, match=f"{MAX_BATCH_SIZE}"):
        transport.infer(texts, classes=True)


def test_a_bad_request_fails_alone_under_concurrent_load(server: ServerState) -> None:
    def send(number: int) -> str:
        transport = TRANSPORTS["grpc"](server.grpc_url, 60.0)
        raw = b"\xff" if number % 5 == 0 else TEXTS[number].encode()
        try:
            transport.infer(np.array([[raw]], dtype=object), classes=True)
        except BadRequest:
            return "refused"
        finally:
            transport.close()
        return "answered"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(send, range(100)))
    assert outcomes == ["refused" if number % 5 == 0 else "answered" for number in range(100)]


def test_concurrent_requests_share_engine_calls(server: ServerState) -> None:
    def counts() -> tuple[int, int]:
        with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        found = [re.search(rf'^{name}{{model="bert_engine".*}} (\d+)', text, re.M) for name in METRICS]
        assert found[0]
        assert found[1]
        return int(found[0][1]), int(found[1][1])

    async def burst() -> list[str]:
        """64 requests at once: more than the server can begin on one by one, however slow it or this client is."""
        generator = Generator(server.grpc_url, b"", timeout_s=60)
        try:
            requests = [request_bytes([text]) for text in TEXTS[:64]]
            sent = await asyncio.gather(*(generator.send(time.monotonic(), 0.0, request) for request in requests))
        finally:
            await generator.close()
        return [one.code for one in sent]

    texts, calls = counts()
    assert [code for _ in range(5) for code in asyncio.run(burst())] == [OK] * 5 * 64
    # A call is counted after its answers have been sent. The supervisor's own texts count too, each a call of its own.
    assert wait_until(lambda: counts()[0] - texts >= 5 * 64)
    more_texts, more_calls = counts()
    assert (more_texts - texts) / (more_calls - calls) > 1.2


METRICS = ("nv_inference_count", "nv_inference_exec_count")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_latency_is_measured_request_by_request(server: ServerState, protocol: ProtocolName) -> None:
    with connect(url_of(server, protocol), protocol) as classifier:
        result = measure_latency(classifier, TEXTS, protocol=protocol, requests=30, warmup=2)
    assert 0 < result.p50_ms <= result.p95_ms <= result.p99_ms <= result.max_ms
    assert result.requests == 30


def test_model_control_is_closed_to_http_clients(server: ServerState) -> None:
    client = tritonclient.http.InferenceServerClient(server.http_url)
    calls = {
        "load": lambda: client.load_model(CLASSIFIER),
        "unload": lambda: client.unload_model(CLASSIFIER),
        "index": client.get_model_repository_index,
        "shared memory": client.get_system_shared_memory_status,
        "statistics": client.get_inference_statistics,
        "configuration": lambda: client.get_model_config(CLASSIFIER),
        "log settings": client.get_log_settings,
        "trace settings": client.get_trace_settings,
    }
    for name, call in calls.items():
        with pytest.raises(InferenceServerException, match="restricted"):
            print(name, call())
    client.get_model_repository_index(headers={CONTROL_HEADER: server.control_token})
    client.close()


def test_model_control_is_closed_to_grpc_clients(server: ServerState) -> None:
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    for call in (
        lambda: client.unload_model(CLASSIFIER),
        client.get_model_repository_index,
        client.get_system_shared_memory_status,
        client.get_inference_statistics,
    ):
        with pytest.raises(InferenceServerException, match="restricted"):
            print(call())
    client.get_model_repository_index(headers={f"triton-grpc-protocol-{CONTROL_HEADER}": server.control_token})
    client.close()


def test_a_server_without_its_model_is_unavailable_and_says_so(server: ServerState, protocol: ProtocolName) -> None:
    control = tritonclient.http.InferenceServerClient(server.http_url)
    control.unload_model(CLASSIFIER, headers={CONTROL_HEADER: server.control_token})
    try:
        with connect(url_of(server, protocol), protocol) as classifier:
            with pytest.raises(Unavailable):
                classifier.classify(["cat"])
            with pytest.raises(Unavailable, match="still loading, or no release is published"):
                classifier.check_ready()
    finally:
        with ModelControl(server) as restored:
            restored.load(CLASSIFIER)
        control.close()
    with connect(url_of(server, protocol), protocol) as classifier:
        classifier.check_ready()
        assert classifier.classify(["cat"])
