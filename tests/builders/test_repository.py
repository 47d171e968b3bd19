"""`builders.repository`: release folders that are whole or absent, and a deployed repository without any release."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from builders.engine_record import EngineRecord
from builders.model_config import CONFIGS
from builders.repository import SOURCE, render_repository, write_release
from contract.command import Failure, UsageError
from contract.probes import Probes, read_probes
from contract.release import Manifest, read_manifest
from contract.tensors import ENGINE, ENSEMBLES, STEPS, TOKENIZER

PARITY = {"max_abs": 1e-7, "shapes": [[1, 1]]}


def tokenizer_json(*words: str) -> bytes:
    """A tokenizer that knows these words."""
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *words))}
    return Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")).to_str().encode()


TOKENIZER_JSON = tokenizer_json("a")
RECORD = EngineRecord(
    kind="onnxruntime",
    precision="int8",
    runtime={"name": "onnxruntime", "version": "1"},
    parity=PARITY,
    accuracy={"engine": 0.5},
    hardware={"cpu": "a processor"},
)
FACTS: dict[str, Any] = {
    "max_length": 16,
    "checkpoint_sha256": "0" * 64,
    "versions": {"onnx": "1"},
}


def write(
    target: Path, *, weights: bytes = b"weights", tokenizer: bytes = TOKENIZER_JSON, labels: tuple[str, ...] = ("no", "yes")
) -> Manifest:
    """A release whose engine is `weights`."""

    def write_engine(folder: Path) -> EngineRecord:
        (folder / "model.onnx").write_bytes(weights)
        return RECORD

    return write_release(
        target,
        name="tiny",
        tokenizer_json=tokenizer,
        labels=list(labels),
        write_engine=write_engine,
        make_probes=make_probes,
        **FACTS,
    )


def make_probes(parity: dict[str, Any]) -> Probes:
    """One text and what is expected of it."""
    return Probes(texts=["a"], logits=[[0.0, 1.0]], bound=10 * parity["max_abs"], agreement=1.0)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_deployed_repository_starts_with_configs_and_no_version_of_a_step(tmp_path: Path) -> None:
    render_repository(tmp_path / "deployed")
    found = contents(tmp_path / "deployed")
    assert set(found) == {*CONFIGS, *(f"{ensemble}/1/.gitkeep" for ensemble in ENSEMBLES)}
    for name in CONFIGS:
        assert found[name] == (SOURCE / name).read_bytes()


def test_a_repository_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "deployed").mkdir()
    (tmp_path / "deployed" / "mine").write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        render_repository(tmp_path / "deployed")
    assert contents(tmp_path) == {"deployed/mine": b"kept"}


def test_a_release_holds_what_the_contract_lists(tmp_path: Path) -> None:
    manifest = write(tmp_path / "release")
    found = contents(tmp_path / "release")
    release_json = f"{TOKENIZER}/release.json"
    assert set(found) == {
        "manifest.json",
        "labels.txt",
        "probes.json",
        f"{TOKENIZER}/model.py",
        f"{TOKENIZER}/tokenizer.json",
        f"{TOKENIZER}/contract.json",
        release_json,
        f"{ENGINE}/model.py",
        f"{ENGINE}/model.onnx",
    }
    assert found["labels.txt"] == b"no\nyes\n"
    assert found[f"{TOKENIZER}/tokenizer.json"] == TOKENIZER_JSON
    assert found[f"{ENGINE}/model.onnx"] == b"weights"
    assert json.loads(found[release_json]) == {"release": manifest.release, "features": []}
    assert read_probes(tmp_path / "release") == make_probes(PARITY)
    for step in STEPS:
        assert found[f"{step}/model.py"] == (SOURCE / step / "1" / "model.py").read_bytes()


def test_the_manifest_is_the_returned_one_and_verifies(tmp_path: Path) -> None:
    manifest = write(tmp_path / "release")
    assert read_manifest(tmp_path / "release") == manifest
    assert set(manifest.files) == set(contents(tmp_path / "release")) - {"manifest.json"}
    assert (manifest.labels, manifest.parity) == (["no", "yes"], PARITY)
    assert {name: getattr(manifest, name) for name in FACTS} == FACTS
    assert {name: getattr(manifest, name) for name in dataclasses.asdict(RECORD)} == dataclasses.asdict(RECORD)
    assert (manifest.engine, manifest.container) == ("onnxruntime int8", None)
    assert manifest.tokenizer_sha256 == hashlib.sha256(TOKENIZER_JSON).hexdigest()
    assert manifest.release.startswith("tiny-")


@pytest.mark.parametrize("name", [f"{ENGINE}/model.onnx", f"{TOKENIZER}/release.json", "labels.txt", f"{TOKENIZER}/model.py"])
def test_a_changed_file_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / "release")
    with (tmp_path / "release" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UsageError, match=f"was changed after it was built: {name}"):
        read_manifest(tmp_path / "release")


def test_the_same_release_written_later_is_the_same_to_the_byte(tmp_path: Path) -> None:
    write(tmp_path / "first")
    for path in (tmp_path / "first").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    write(tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


@pytest.mark.parametrize("change", [{"weights": b"Weights"}, {"tokenizer": tokenizer_json("b")}, {"labels": ("yes", "no")}])
def test_another_engine_tokenizer_or_labels_make_another_release(tmp_path: Path, change: dict[str, Any]) -> None:
    assert write(tmp_path / "first").release != write(tmp_path / "second", **change).release


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_a_target_that_exists_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "release"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("kept")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = target.lstat()
    with pytest.raises(UsageError, match=r"release exists already"):
        write(target)
    assert target.lstat() == before
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("error", [Failure("not equal"), KeyboardInterrupt()])
def test_an_engine_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write_engine(folder: Path) -> EngineRecord:
        (folder / "model.onnx").write_bytes(b"half")
        raise error

    engine: dict[str, Any] = {"write_engine": write_engine, "make_probes": make_probes}
    with pytest.raises(type(error)):
        write_release(tmp_path / "release", name="tiny", tokenizer_json=TOKENIZER_JSON, labels=["a"], **engine, **FACTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["two\nlines", "two\r\nlines", "\n"])
def test_a_label_that_would_be_two_lines_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(UsageError, match="one line"):
        write(tmp_path / "release", labels=("no", label))
    assert list(tmp_path.iterdir()) == []


def test_labels_are_utf8_and_keep_their_spaces_and_colons(tmp_path: Path) -> None:
    labels = (" padded ", "a:b", "木", "c++/c#")
    write(tmp_path / "release", labels=labels)
    assert (tmp_path / "release" / "labels.txt").read_text(encoding="utf-8").split("\n") == [*labels, ""]
