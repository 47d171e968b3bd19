"""The whole comparison with a stub for a peer: our real server, its release, and what the results file then holds."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from clients import Unavailable
from contract.command import Failure, UsageError
from contract.files import read_json
from loadtests.alone import measure_alone
from loadtests.peers import __main__ as command
from loadtests.peers import duel, goals, measure, session
from loadtests.peers.__main__ import Peers
from loadtests.peers.catalogue import Launch, Peer
from loadtests.peers.duel import take_pairs
from loadtests.peers.servers import cut_texts

STUB = Path(__file__).with_name("stub_peer.py")
few_alone = partial(measure_alone, count=50)


def stub(name: str, label: str, *mode: str) -> Peer:
    """A peer that gives one label to everything."""

    def start(launch: Launch) -> list[str]:
        return [sys.executable, str(STUB), str(launch.port), label, *mode]

    return Peer(name=name, title=name, settings="none", environment="stub", versions=("numpy",), command=start)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Few loads; the stubs in place of the catalogue, in this environment."""
    monkeypatch.setattr(measure, "USERS", (1,))
    monkeypatch.setattr(measure, "SHARES", (0.8,))
    monkeypatch.setattr(measure, "ANSWERS", 10)  # a load would go on until it had 130
    monkeypatch.setattr(goals, "MIN_REQUESTS", 1)  # loads of a second may have fewer than 100
    monkeypatch.setattr(duel, "PAIRS", 2)
    monkeypatch.setattr(session, "TURNS", 1)
    monkeypatch.setattr(session, "measure_alone", few_alone)
    monkeypatch.setattr(session, "interpreter", lambda name, folder: Path(sys.executable))

    def use(*peers: Peer) -> None:
        monkeypatch.setattr(command, "catalogue", lambda flags: list(peers))

    yield use


@pytest.fixture
def options(tmp_path: Path, merged: Path, release: Path) -> Peers:
    return Peers(
        checkpoint=merged,
        release=release,
        repository=release.parent / "model_repository",
        envs=tmp_path / "envs",
        output=tmp_path / "peers.json",
        work=tmp_path / "work",
        rounds=1,
        seconds=1,
        warmup_s=0,
        compared=20,
        agreement=0.1,  # a stub knows one label
    )


def test_a_comparison_is_measured_and_continued(
    short: Callable[..., None], options: Peers, capsys: pytest.CaptureFixture[str]
) -> None:
    short(stub("one", "animal"), stub("broken", "animal", "crash"), stub("wrong", "mineral"))
    with pytest.raises(Failure, match="not measured:\n  broken: the server ended with code 3") as failure:
        command.main(options)
    assert "wrong: 0 of 20 labels are the checkpoint's, wanted 10.0%" in str(failure.value)
    found = read_json(options.output)
    assert set(found["rounds"]["1"]) == {"one", "ours"} and set(found["failed"]) == {"broken", "wrong"}
    ours, one = found["rounds"]["1"]["ours"], found["rounds"]["1"]["one"]
    assert ours["labels"] == {"texts": 20, "equal": 20}
    assert ours["at"]["one"]["rate"] == pytest.approx(one["open"]["0.8"]["rate"])
    assert min(ours["memory_bytes"], ours["cold_start_s"], one["cold_start_s"]) > 0
    assert ours["closed"]["1"]["stages"]["mean_ms"]["engine compute"] > 0
    assert len(ours["alone"]) == len(ours["alone_http"]) == 1
    for alone in (turn["p50_ms"] for turn in ours["alone"] + ours["alone_http"]):
        assert alone["total"] > alone["engine compute"] > 0 and alone["total"] > alone["tokenizer compute"] > 0
    pairs = [*ours["bare"], *ours["duels"]["one"]["saturated"], *ours["duels"]["one"]["alone"]]
    assert len(pairs) == 6 and all(min(pair[side]["requests_per_s"] for side in pair) > 0 for pair in pairs)
    assert [goal["met"] for goal in found["goals"]].count(None) == 0
    assert "BERT on Triton (ours)" in capsys.readouterr().out
    before = options.output.read_bytes()
    short(stub("one", "animal"))
    command.main(options)  # all of it is finished: nothing is started
    assert read_json(options.output)["rounds"] == found["rounds"]
    assert before != b"" and "round 1" not in capsys.readouterr().err


def test_a_duel_that_fails_is_written_down_and_made_by_the_next_call(
    short: Callable[..., None], options: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(stub("one", "animal"))

    def pairs(title: str, *_: object) -> list[duel.Pair]:
        if "one" in title:
            raise Unavailable("connection lost")
        return []

    monkeypatch.setattr(session, "take_pairs", pairs)
    with pytest.raises(Failure, match="not measured:\n  one: Unavailable: connection lost"):
        command.main(options)
    found = read_json(options.output)
    assert found["rounds"]["1"]["ours"]["duels"] == {} and set(found["failed"]) == {"one"}
    monkeypatch.setattr(session, "take_pairs", take_pairs)
    command.main(dataclasses.replace(options, only=("ours",)))  # it lacks a duel, so it is measured again
    found = read_json(options.output)
    assert set(found["rounds"]["1"]["ours"]["duels"]) == {"one"} and found["failed"] == {}


def test_a_release_of_another_checkpoint_is_refused(short: Callable[..., None], options: Peers, second_release: Path) -> None:
    short(stub("one", "animal"))
    with pytest.raises(UsageError, match=r"was not built of .*: the hashes of the weights differ"):
        command.main(dataclasses.replace(options, release=second_release))
    assert not options.output.exists()


def test_the_servers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(Peers(checkpoint=Path("merged"), list=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ours ") and any(line.startswith("infinity-best ") for line in lines)


def test_texts_are_cut_where_the_model_stops_reading(release: Path) -> None:
    path = release / "bert_tokenizer" / "tokenizer.json"
    long = " ".join(["cat dog bird"] * 20)
    cut, kept = cut_texts([long, "the old cat"], path)
    assert kept == "the old cat"
    assert long.startswith(cut) and len(cut) < len(long)
    tokenizer: Any = Tokenizer.from_file(str(path))
    assert tokenizer.encode(cut).ids == tokenizer.encode(long).ids
