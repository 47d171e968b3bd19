"""Planted times become the entries that a measurement file holds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving.load import OK, Sent
from tests.serving.overload import Phase, timeline
from tests.serving.timeline import ENTRIES, entries, longer, on_load


def test_each_request_counts_in_the_second_in_which_it_was_due() -> None:
    answered = [(2.5, 0.3), (0.1, 0.01), (0.2, 0.03), (0.999, 0.02)]  # as they were answered, not as they were due
    events = [(0.2, "publish"), (2.0, "rollback"), (2.9, "promote")]
    assert entries([(0.0, 3.0)], answered, {"failed": [1.0, 1.5]}, events) == [
        {"t": 0, "per_s": 3.0, "p50_ms": 20.0, "p99_ms": 29.8, "failed": 0, "event": "publish"},
        {"t": 1, "per_s": 0.0, "failed": 2},
        {"t": 2, "per_s": 1.0, "p50_ms": 300.0, "p99_ms": 300.0, "failed": 0, "event": "rollback, promote"},
    ]


def test_pauses_between_spans_of_load_are_left_out_with_what_was_sent_in_them() -> None:
    spans = [(100.0, 110.0), (150.0, 155.0)]
    moments = [99.0, 100.0, 109.5, 120.0, 150.0, 154.0, 156.0]
    np.testing.assert_allclose(on_load(spans, moments), [np.nan, 0.0, 9.5, np.nan, 10.0, 14.0, np.nan])
    found = entries(spans, [(moment, 0.1) for moment in moments], {"failed": moments}, [(moment, "flip") for moment in moments])
    assert len(found) == 15
    assert [row["t"] for row in found if row["per_s"]] == [row["t"] for row in found if row["failed"]] == [0, 9, 10, 14]
    assert [row["t"] for row in found if row.get("event") == "flip"] == [0, 9, 10, 14]


def test_a_long_run_has_coarser_steps_and_the_same_sums() -> None:
    answered = [(0.1 * number, 0.02) for number in range(17_000)]
    found = entries([(0.0, 1700.0)], answered, {"failed": [1699.9]}, [(3.5, "publish")])
    assert len(found) == 567 <= ENTRIES
    assert [row["t"] for row in found[:3]] == [0, 3, 6]
    assert {row["per_s"] for row in found} == {10.0}  # the last step of two seconds too
    assert found[1]["event"] == "publish"
    assert found[-1]["failed"] == 1


@pytest.mark.parametrize(("length_s", "count", "last"), [(2.4, 2, 0.7), (2.6, 3, 1.7), (0.2, 1, 5.0)])
def test_a_rate_is_over_the_time_that_its_step_lasted(length_s: float, count: int, last: float) -> None:
    found = entries([(0.0, length_s)], [(length_s - 0.01, 0.02)], {}, [])
    assert (len(found), found[-1]["per_s"]) == (count, last)


def test_without_load_there_is_no_timeline_and_of_two_pieces_the_longer_is_kept() -> None:
    assert entries([], [(1.0, 0.1)], {"failed": [1.0]}, [(1.0, "flip")]) == []
    short, long = entries([(0.0, 500.0)], [], {}, []), entries([(0.0, 1300.0)], [], {}, [])
    assert len(short) > len(long)  # whose entries are 3 seconds apart
    assert longer(longer([], long), short) == long == longer(short, long)


def test_an_overload_tells_refused_from_failed_and_names_its_multiples() -> None:
    refused = "overloaded: the engine is 2 ms behind"
    closed = Phase("capacity", 2.0, [Sent(0.5, OK, 0.1), Sent(1.5, OK, 0.1)])
    twice = [Sent(0.0, OK, 0.2), Sent(0.1, OK, 2.0), Sent(0.2, "UNAVAILABLE", 0.001, refused), Sent(0.9, "INTERNAL", 0.1)]
    found = timeline([closed, Phase("2x", 1.0, twice), Phase("", 1.0, [Sent(0.5, OK, 0.1)])], 1.0)
    answers = {"per_s": 1.0, "p50_ms": 100.0, "p99_ms": 100.0, "failed": 0, "refused": 0}
    assert found == [
        {"t": 0, **answers, "event": "capacity"},
        {"t": 1, **answers},
        {"t": 2, "per_s": 1.0, "p50_ms": 200.0, "p99_ms": 200.0, "failed": 2, "refused": 1, "event": "2x"},
        {"t": 3, **answers},
    ]
