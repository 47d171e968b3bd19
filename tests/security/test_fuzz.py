"""The fuzz run itself, for a few seconds; and that it finds what it looks for."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from contract.command import Failure
from tests.security.behind import Proxied, needs_nginx
from tests.security.fuzz import Fuzz, Target, fuzz, leaks
from tests.security.mutate import Case, case


@needs_nginx
@pytest.mark.server
def test_ten_seconds_of_nearly_right_requests(proxied: Proxied, tmp_path: Path) -> None:
    answers = fuzz(Target(proxied), Fuzz(seconds=10, seed=0, findings=tmp_path))
    assert answers.total() > 100
    assert any(answer.endswith((": 200", ": OK")) for answer in answers)  # nearly right is right now and then
    assert list(tmp_path.iterdir()) == []


def test_a_seed_gives_the_same_requests_and_kinds_of_all_sorts() -> None:
    made = [case(Random(f"7 {number}")) for number in range(300)]
    assert made == [case(Random(f"7 {number}")) for number in range(300)]
    assert len({what.kind for what in made}) == 6


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("in ensemble 'bert_classifier', no", ["ensemble"]),
        ("key bert_77_region in /dev/shm", ["shm", "/dev/", "bert_77_"]),
        ("text 0 is empty", []),
        ("unexpected inference input '/opt/x'", []),  # the request said it
    ],
)
def test_names_of_the_inside_are_found_unless_the_request_said_them(answer: str, found: list[str]) -> None:
    assert leaks(answer.encode(), b'{"name": "/opt/x"}', ("bert_77_",)) == found


class _Broken:
    """A target that does what it must not."""

    secrets = ()

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def send(self, what: Case) -> tuple[str, bytes]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return "500", self.answer

    def check(self) -> None:
        raise Failure("the server crashed")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(TimeoutError("timed out"), "timed out"), (b"stub process", "names stub"), (b"", "the server crashed")],
)
def test_a_finding_ends_the_run_and_is_kept(tmp_path: Path, answer: Any, reason: str) -> None:
    with pytest.raises(Failure, match=f"request [0-9]+ of seed 3 .*{reason}"):
        fuzz(_Broken(answer), Fuzz(seconds=60, seed=3, findings=tmp_path))  # type: ignore[arg-type]
    (folder,) = tmp_path.iterdir()
    kept = sorted(folder.iterdir())
    assert [path.read_bytes() for path in kept] == [case(Random(f"3 {number}")).data for number in range(len(kept))]
