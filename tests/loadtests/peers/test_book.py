"""`loadtests.peers.book`: finished results are kept and used again for the same identity alone."""

from __future__ import annotations

from pathlib import Path

from contract.files import read_json
from loadtests.peers.book import Book
from tests.loadtests.made import ours, server

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
    book.keep(1, "ours", ours(100, {"plain": 24}))
    content = read_json(tmp_path / "deep" / "peers.json")
    assert set(content["rounds"]["1"]) == {"plain", "ours"}
    assert content["goals"][0]["median"] == 100 / 30
    assert (content["schema"], content["engine"]) == (1, "int8")


def test_the_same_identity_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    filled(tmp_path / "peers.json")
    again = Book(tmp_path / "peers.json", IDENTITY, {"engine": "int8"})
    assert set(again.finished(1)) == {"plain"} and again.finished(2) == {}
    again.keep(2, "plain", server(40, memory_mib=500))
    assert set(read_json(tmp_path / "peers.json")["rounds"]) == {"1", "2"}


def test_another_identity_or_schema_begins_anew(tmp_path: Path) -> None:
    filled(tmp_path / "peers.json")
    assert Book(tmp_path / "peers.json", IDENTITY | {"release": "b-2"}, {}).finished(1) == {}
    assert Book(tmp_path / "peers.json", IDENTITY | {"options": {"seconds": 7.0}}, {}).finished(1) == {}


def test_a_failure_is_written_and_forgotten_when_the_server_is_measured(tmp_path: Path) -> None:
    book = Book(tmp_path / "peers.json", IDENTITY, {})
    book.fail("plain", "it crashed")
    assert read_json(tmp_path / "peers.json")["failed"] == {"plain": "it crashed"}
    again = Book(tmp_path / "peers.json", IDENTITY, {})
    again.describe("plain", FACTS)
    again.keep(1, "plain", server(30, memory_mib=500))
    assert read_json(tmp_path / "peers.json")["failed"] == {}
