"""The gate's limits, and where its texts come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.command import Failure, UsageError
from contract.files import write_json_lines
from contract.tensors import CLASSIFIER
from serving.gate import PAUSE, Comparison, Gate, check_comparison, read_rows, settle


def comparison(**changes: Any) -> Comparison:
    values: dict[str, Any] = {"texts": 100, "agreement": 0.95, "old_ms": 10.0, "new_ms": 11.0}
    return Comparison(**(values | changes))


def test_a_comparison_within_the_limits_passes() -> None:
    check_comparison(comparison(), Gate())
    check_comparison(comparison(agreement=0.8, new_ms=30.0), Gate())
    check_comparison(comparison(agreement=0.0), Gate(accept_disagreement=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"agreement": 0.79}, r"agrees with the serving one on 79\.0% of 100 texts, wanted 80\.0%; .*--accept-disagreement"),
        (
            {"new_ms": 31.0},
            r"takes 31\.0 ms a text, the serving one 10\.0 ms: 3\.10 times as long, allowed 3 \(--max-slowdown\)",
        ),
    ],
)
def test_one_beyond_a_limit_is_refused_with_what_to_do(changes: dict[str, float], said: str) -> None:
    with pytest.raises(Failure, match=said):
        check_comparison(comparison(**changes), Gate())


def test_slowness_is_refused_even_where_disagreement_is_accepted() -> None:
    with pytest.raises(Failure, match="--max-slowdown"):
        check_comparison(comparison(agreement=0.1, new_ms=99.0), Gate(accept_disagreement=True))


def test_settling_lasts_as_long_as_the_queue_of_the_serving_release(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    class Serving:
        def __enter__(self) -> Serving:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def classify(self, texts: list[str], *, features: Any) -> None:
            asked.append((texts[0], features))
            clock.now += 0.9

    def connected(url: str, protocol: str, *, model: str, retry: Any) -> Serving:
        assert (url, protocol, model) == ("127.0.0.1:1", "http", CLASSIFIER)
        return Serving()

    clock = Clock()
    monkeypatch.setattr("serving.gate.connect", connected)
    monkeypatch.setattr("serving.gate.time", clock)
    settle("127.0.0.1:1", {"text": "the cat", "features": [1.0]})
    assert asked == [("the cat", [[1.0]])]
    assert clock.now == pytest.approx(0.9 * (1 + PAUSE))


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_texts_are_lines_or_objects(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    write_json_lines(tmp_path / "a.jsonl", [{"text": "one", "label": "x"}, {"text": "two\nlines"}])
    assert read_rows(tmp_path / "a.txt") == [{"text": "one"}, {"text": " two "}]
    assert Gate(probe=tmp_path / "a.jsonl").rows() == [{"text": "one", "label": "x"}, {"text": "two\nlines"}]
    assert Gate().rows() == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n \n", "holds no text"),
        ("a.jsonl", '{"label": "x"}\n', 'an object with a "text" on every line'),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("absent.txt", None, "cannot read texts from"),
    ],
)
def test_a_file_without_texts_is_named(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "flag"), [({"agreement": 1.1}, "--agreement is 1.1"), ({"max_slowdown": 0.0}, "--max-slowdown is 0.0")]
)
def test_a_limit_that_makes_no_sense_is_refused(changes: dict[str, float], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        Gate(**changes)  # type: ignore[arg-type]
