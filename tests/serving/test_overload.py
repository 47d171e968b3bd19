"""More load than the server can carry: refused at once with the right code, goodput kept, and back to normal. Plus the sums."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from clients import Rejected, connect
from contract.release import read_manifest
from contract.tensors import CLASSIFIER, TOKENIZER
from serving.deployment import Deployment
from tests.served import deployed, serving, wait_until
from tests.serving.http_load import HttpGenerator, http_request
from tests.serving.load import OK, Generator, Sent, request_bytes
from tests.serving.overload import Phase, compare_with_peak, failures, is_refused, pooled, recovery_s, summarise
from tests.tiny import tiny_texts

TEXTS = [text for text, _ in tiny_texts(64)]


def test_answers_are_counted_by_what_became_of_them() -> None:
    refused = "in ensemble 'bert_classifier', overloaded: the engine is 2 ms behind"
    sent = [Sent(0.1 * number, OK, 0.05) for number in range(10)]
    sent += [Sent(1.0, OK, 2.0), Sent(1.1, "UNAVAILABLE", 0.002, refused), Sent(1.2, "RESOURCE_EXHAUSTED", 0.004, refused)]
    sent += [Sent(1.3, "UNAVAILABLE", 0.1, "connection refused"), Sent(1.4, "INTERNAL", 0.1, "broken")]
    summary = summarise(sent, 2.0, 1.0)
    assert (summary["offered_per_s"], summary["goodput_per_s"], summary["late"], summary["refused"]) == (7.5, 5.0, 1, 2)
    assert summary["refusal_codes"] == {"UNAVAILABLE": 1, "RESOURCE_EXHAUSTED": 1}
    assert summary["errors"] == {"UNAVAILABLE: connection refused": 1, "INTERNAL: broken": 1}
    assert summary["answer_ms"]["p50"] == pytest.approx(50)
    assert recovery_s(sent, 1.0) == 1.4
    assert recovery_s(sent[:10], 1.0) == 0.0


def test_the_rounds_of_a_factor_are_taken_together() -> None:
    first = Phase("2x", 2.0, [Sent(0.1 * number, OK, 0.05) for number in range(10)], 2.0, {"generator": 0.1}, 0.5)
    second = Phase("2x", 2.0, [Sent(0.1 * number, OK, 0.05 + number) for number in range(10)], 2.0, {"generator": 0.3}, 1.5)
    found = pooled([first, second], 1.0)
    assert (found["factor"], found["goodput_per_s"], found["late"], found["offered_per_s"]) == (2.0, 11 / 4, 9, 5.0)
    assert (found["least_goodput_per_s"], found["greatest_goodput_per_s"]) == (0.5, 5.0)
    assert (found["cores"], found["recovery_s"]) == ({"generator": 0.2}, 1.5)


def test_goodput_is_compared_with_the_best_as_it_is_and_per_core_that_the_generator_left() -> None:
    phases = [{"goodput_per_s": good, "cores": {"generator": used}} for good, used in ((20.0, 0.0), (15.0, 0.5), (16.0, 0.0))]
    compare_with_peak(phases, 2)
    assert [phase["of_peak"] for phase in phases] == [1.0, 0.75, 0.8]
    assert [phase["of_peak_per_core"] for phase in phases] == [1.0, 1.0, 0.8]


def test_less_goodput_and_a_slow_recovery_are_missed_targets_from_twice_the_capacity_on() -> None:
    phases = [{"factor": factor, "of_peak": 0.9, "recovery_s": 2.0} for factor in (2.0, 5.0, 10.0)]
    assert failures([{"factor": 0.5, "of_peak": 0.5, "recovery_s": 3.0}, *phases]) == []
    phases[0]["of_peak"], phases[2]["recovery_s"] = 0.89, 2.1
    assert failures(phases) == [
        "at 2x goodput is 89% of its peak, not 90%",
        "after 10x it took 2.1 s to recover, not 2",
    ]


@pytest.mark.server
def test_an_overloaded_server_refuses_with_the_right_code_and_recovers(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    config = repository.path / TOKENIZER / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "1000"', 'string_value: "1"'))  # max_wait_ms
    with serving(repository) as state:
        sent: list[Sent] = []

        def both() -> bool:
            """Whether some were refused and some answered: 32 callers with 64 texts each are more than 1 ms of work."""
            sent.extend(asyncio.run(flood(state.grpc_url)))
            return any(one.code != OK for one in sent) and sum(one.code == OK for one in sent) > 10

        assert wait_until(both)
        refused = [one for one in sent if one.code != OK]
        assert {one.code for one in refused} == {"UNAVAILABLE"}
        assert all("overloaded: the engine is" in one.message for one in refused)
        assert all(is_refused(one) for one in refused)
        over_http: list[Sent] = []

        def some_over_http() -> bool:
            over_http.extend(asyncio.run(flood(state.http_url, over_http=True)))
            return any(map(is_refused, over_http))

        assert wait_until(some_over_http)
        assert {one.code for one in over_http if one.code != OK} == {"503"}
        with connect(state.http_url, "http") as classifier:  # and it is itself again at once
            assert len(classifier.classify(TEXTS[:3])) == 3
            with pytest.raises(Rejected, match="overloaded"):
                asyncio.run(refused_while_flooded(state.grpc_url, state.http_url))
        asyncio.run(checked_while_flooded(state.grpc_url, Deployment.find(repository), read_manifest(release).release))


async def flood(url: str, *, over_http: bool = False) -> list[Sent]:
    """32 callers without pause for a second."""
    make, request = (HttpGenerator, http_request) if over_http else (Generator, request_bytes)
    generator = make(url, request(TEXTS), timeout_s=60)
    try:
        return await generator.closed_loop(32, 1.0)
    finally:
        await generator.close()


async def refused_while_flooded(grpc_url: str, http_url: str) -> None:
    """Classify over HTTP while the server is flooded, until it is refused there too."""

    def ask() -> None:
        with connect(http_url, "http", timeout_s=60) as classifier:
            ends = time.monotonic() + 60
            while time.monotonic() < ends:
                classifier.classify(TEXTS[:1])

    asking = asyncio.create_task(asyncio.to_thread(ask))
    while not asking.done():
        await flood(grpc_url)
    await asking


async def checked_while_flooded(url: str, deployment: Deployment, release: str) -> None:
    """An operator's check, as after a rollback, is patient with an overloaded server."""
    await flood(url)
    checking = asyncio.create_task(asyncio.to_thread(deployment.check_answer, CLASSIFIER, release))
    while not checking.done():
        await flood(url)
    await checking
