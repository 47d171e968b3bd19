"""`loadtests.peers.catalogue`: what each peer is started with, on processors with and without bf16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.command import UsageError
from loadtests.peers.__main__ import Peers, main
from loadtests.peers.catalogue import Launch, Peer, best_dtype, catalogue, processor_flags
from loadtests.peers.environments import REQUIREMENTS
from loadtests.peers.process import ROOT

MODERN = frozenset({"avx2", "avx512_bf16"})
OLD = frozenset({"avx2"})
ALL = catalogue(MODERN)


def launch(folder: Path) -> Launch:
    python = folder / "env" / "bin" / "python"
    return Launch(model=folder / "model", onnx=folder / "onnx", python=python, work=folder, port=1234, threads=2)


def test_bf16_is_used_where_the_processor_has_it_and_nowhere_else() -> None:
    assert (best_dtype(MODERN), best_dtype(frozenset({"amx_bf16"})), best_dtype(OLD)) == ("bfloat16", "bfloat16", "float32")
    assert {peer.precision for peer in catalogue(OLD)} == {"float32", "int8"}


def test_names_are_unique_and_every_kind_of_peer_has_a_default_and_a_best() -> None:
    assert len({peer.name for peer in ALL}) == len(ALL)
    for title in {peer.title for peer in ALL}:
        assert {peer.best for peer in ALL if peer.title == title} == {True, False}


def test_defaults_are_in_the_checkpoints_own_precision() -> None:
    assert {peer.precision for peer in ALL if not peer.best} == {"float32"}


@pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)
def test_every_package_of_an_environment_is_pinned(peer: Peer) -> None:
    lines = (REQUIREMENTS / f"{peer.environment}.txt").read_text().splitlines()
    assert lines and all(line.count("==") == 1 for line in lines)
    assert {line.split("==")[0] for line in lines} >= set(peer.versions)
    assert "torch==2.13.0" in lines


@pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)
def test_a_peer_is_started_out_of_its_environment_on_its_port(peer: Peer, tmp_path: Path) -> None:
    command = peer.command(launch(tmp_path))
    assert Path(command[0]).parent == tmp_path / "env" / "bin"
    settings = tmp_path / "settings.json"
    assert "1234" in command or json.loads(settings.read_text())["http_port"] == 1234
    assert peer.folder(launch(tmp_path)) == (tmp_path / "onnx" / peer.precision if peer.onnx else ROOT)
    variables = peer.variables(launch(tmp_path))
    assert variables["OMP_NUM_THREADS"] == "2" and variables["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(("name", "batched"), [("mlserver", False), ("mlserver-best", True)])
def test_mlserver_batches_where_it_is_to(name: str, batched: bool, tmp_path: Path) -> None:
    (peer,) = (peer for peer in ALL if peer.name == name)
    peer.command(launch(tmp_path))
    assert ("max_batch_size" in json.loads((tmp_path / "model-settings.json").read_text())) is batched


def test_answers_are_read() -> None:
    by_name = {peer.name: peer for peer in ALL}
    scores = {"data": [[{"label": "a", "score": 0.2}, {"label": "b", "score": 0.8}]]}
    assert by_name["infinity"].label(scores) == "b"
    assert by_name["fastapi"].label({"label": "b"}) == by_name["ray"].label({"label": "b"}) == "b"
    assert by_name["bentoml"].label(["b"]) == by_name["mlserver"].label({"outputs": [{"data": ["b"]}]}) == "b"


def test_the_server_programs_are_there() -> None:
    for name in ("fastapi_server", "ray_server", "bentoml_service", "mlserver_runtime", "model"):
        assert (ROOT / "loadtests" / "peers" / "apps" / f"{name}.py").exists()


def test_this_processors_flags_are_read() -> None:
    assert processor_flags()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"only": ("ours", "fastpi")}, "--only fastpi: there is ours, infinity"),
        ({"rounds": 0}, "--rounds is 0; it must be at least 1"),
        ({"seconds": 0.5}, "--seconds is 0.5; it must be at least 1"),
        ({"warmup_s": -1}, "--warmup-s is -1; it must be at least 0"),
        ({"compared": 5}, "--compared is 5; it must be at least 20"),
        ({"agreement": 1.5}, r"--agreement is 1.5; it must be above 0, at most 1"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Peers(checkpoint=Path("merged"), **changes)  # type: ignore[arg-type]


def test_a_repository_that_is_none_is_refused_before_any_peer_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a deployed repository"):
        main(Peers(checkpoint=tmp_path, repository=tmp_path / "none", work=tmp_path / "work", output=tmp_path / "peers.json"))
    assert not (tmp_path / "work").exists()
