"""`loadtests.peers.book`: finished results are kept and used again for the same identity alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.command import UsageError
from contract.files import read_json, write_json
from loadtests.peers.book import Book
from tests.loadtests.made import duel, ours, server

IDENTITY = {"release": "a-1", "options": {"seconds": 6.0}}
FACTS = {"title": "Plain", "settings": "defaults", "best": False, "versions": {}}


def filled(path: Path) -> Book:
    book = Book(path, IDENTITY, {"engine": "int8"})
    book.describe("plain", FACTS)
    book.keep(1, "plain", server(30, memory_mib=500))
    return book


def test_what_is_kept_is_on_disk_at_once_with_its_goals(tmp_path: Path) -> None:
    book = filled(tmp_path / "deep" / "peers.json")
    book.describe("ours", FACTS | {"best": True})
    book.keep(1, "ours", ours(100, {"plain": 24}))  # measured before there was a rival
    assert read_json(tmp_path / "deep" / "peers.json")["goals"][0]["met"] is None
    book.keep(1, "ours", ours(100, {"plain": 24}) | {"duels": {"plain": duel(100, 30)}})
    content = read_json(tmp_path / "deep" / "peers.json")
    assert set(content["rounds"]["1"]) == {"plain", "ours"}
    assert content["goals"][0]["median"] == pytest.approx(100 / 30)
    assert (content["schema"], content["engine"]) == (3, "int8")


def test_the_same_identity_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    filled(tmp_path / "peers.json")
    again = Book(tmp_path / "peers.json", IDENTITY, {"engine": "int8"})
    assert set(again.finished(1)) == {"plain"} and again.finished(2) == {}
    again.keep(2, "plain", server(40, memory_mib=500))
    assert set(read_json(tmp_path / "peers.json")["rounds"]) == {"1", "2"}


def test_a_measurement_of_something_else_is_replaced_only_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    filled(path)
    before = path.read_bytes()
    other = {"release": "b-2", "options": {"seconds": 7.0}}
    with pytest.raises(UsageError, match="holds a measurement with another options, release: name another --output"):
        Book(path, other, {})
    assert path.read_bytes() == before
    assert Book(path, other, {}, fresh=True).finished(1) == {}
    assert set(Book(path, IDENTITY, {}, fresh=True).finished(1)) == {"plain"}  # the same is continued


def test_figures_that_were_taken_otherwise_are_not_continued(tmp_path: Path) -> None:
    filled(tmp_path / "peers.json")
    write_json(tmp_path / "peers.json", read_json(tmp_path / "peers.json") | {"schema": 1})
    with pytest.raises(UsageError, match="another schema"):
        Book(tmp_path / "peers.json", IDENTITY, {})


def test_a_failure_is_written_and_forgotten_when_the_server_is_measured(tmp_path: Path) -> None:
    book = Book(tmp_path / "peers.json", IDENTITY, {})
    book.fail("plain", "it crashed")
    assert read_json(tmp_path / "peers.json")["failed"] == {"plain": "it crashed"}
    again = Book(tmp_path / "peers.json", IDENTITY, {})
    again.describe("plain", FACTS)
    again.keep(1, "plain", server(30, memory_mib=500))
    assert read_json(tmp_path / "peers.json")["failed"] == {}
