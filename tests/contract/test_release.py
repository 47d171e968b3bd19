"""`contract.release`: a release whose every file is what it was when it was built, or an error that names the file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.command import UsageError
from contract.release import MANIFEST_FILE, SCHEMA, Manifest, hash_files, read_manifest, release_id

FILES = {
    "labels.txt": "open\nclosed\n",
    "bert_tokenizer/tokenizer.json": "{}",
    "bert_tokenizer/model.py": "tokenizer",
    "bert_engine/model.onnx": "weights",
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A made-up release."""
    folder = tmp_path / "release"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    hashes = hash_files(folder)
    Manifest(
        release=release_id("questions", hashes),
        labels=["open", "closed"],
        engine="onnxruntime fp32",
        kind="onnxruntime",
        precision="fp32",
        layout="padded",
        runtime={"name": "onnxruntime", "version": "1"},
        hardware={"cpu": "a processor", "flags": [], "cores": 2},
        container=None,
        profiles=[],
        max_length=128,
        checkpoint_sha256="0" * 64,
        tokenizer_sha256="1" * 64,
        parity={"max_abs": 1e-6},
        accuracy={"engine": 0.9, "checkpoint": 0.9},
        versions={"torch": "2"},
        files=hashes,
    ).write(folder)
    return folder


def alter_manifest(folder: Path, **values: Any) -> None:
    """Replace keys of the manifest; None takes one out."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text()) | values
    kept = {key: value for key, value in manifest.items() if value is not None}
    (folder / MANIFEST_FILE).write_text(json.dumps(kept))


def test_a_manifest_comes_back_as_it_was_written(release: Path) -> None:
    manifest = read_manifest(release)
    assert manifest.schema == SCHEMA
    assert manifest.labels == ["open", "closed"]
    assert manifest.files.keys() == FILES.keys()
    assert (manifest.parity, manifest.max_length) == ({"max_abs": 1e-6}, 128)


def test_a_release_may_be_moved(release: Path) -> None:
    assert read_manifest(Path(shutil.copytree(release, release.parent / "elsewhere"))) == read_manifest(release)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "bert_engine/model.onnx").write_text("weightz"), "bert_engine/model.onnx"),
        (lambda folder: (folder / "bert_engine/model.onnx").unlink(), "bert_engine/model.onnx"),
        (lambda folder: (folder / "bert_engine/model.plan").write_text("new"), "bert_engine/model.plan"),
        (lambda folder: shutil.rmtree(folder / "bert_tokenizer"), "bert_tokenizer/model.py, bert_tokenizer/tokenizer.json"),
        (lambda folder: (folder / "labels.txt").rename(folder / "names.txt"), "labels.txt, names.txt"),
        (lambda folder: (folder / "bert_engine/manifest.json").write_text("{}"), "bert_engine/manifest.json"),
    ],
    ids=["changed", "missing", "extra", "a folder missing", "renamed", "a second manifest"],
)
def test_files_that_changed_since_the_build_are_named(release: Path, spoil: Callable[[Path], object], named: str) -> None:
    read_manifest(release)
    spoil(release)
    with pytest.raises(UsageError, match=f"was changed after it was built: {re.escape(named)}; build it again"):
        read_manifest(release)


@pytest.mark.parametrize(
    "values", [{"schema": SCHEMA + 1}, {"schema": str(SCHEMA)}, {"engine": None}, {"stranger": 1}], ids=str
)
def test_a_manifest_of_another_schema_is_refused(release: Path, values: dict[str, Any]) -> None:
    alter_manifest(release, **values)
    with pytest.raises(
        UsageError,
        match=rf"is not a release manifest of schema {SCHEMA} \(it says .*\); build the release again",
    ):
        read_manifest(release)


def test_a_release_of_the_first_schema_is_refused_by_its_number(release: Path) -> None:
    added = ("kind", "precision", "layout", "runtime", "hardware", "container", "profiles", "tokenizer_sha256", "accuracy")
    alter_manifest(release, schema=1, **dict.fromkeys(added))
    with pytest.raises(UsageError, match=r"it says schema 1\); build the release again"):
        read_manifest(release)


@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_a_manifest_that_is_no_object_is_refused(release: Path, content: str) -> None:
    (release / MANIFEST_FILE).write_text(content)
    with pytest.raises(UsageError, match="is not a release manifest"):
        read_manifest(release)


def test_a_folder_without_a_manifest_is_refused(release: Path) -> None:
    (release / MANIFEST_FILE).unlink()
    with pytest.raises(UsageError, match=r"cannot read .*manifest\.json as JSON"):
        read_manifest(release)


def test_a_release_is_known_by_its_name_and_its_contents() -> None:
    artefacts = {"a": "0" * 64, "b": "1" * 64}
    identity = release_id("questions", artefacts)
    assert re.fullmatch(r"questions-[0-9a-f]{12}", identity)
    assert release_id("questions", dict(reversed(artefacts.items()))) == identity
    others = [
        release_id("questions", {"a": "0" * 64, "b": "1" * 63 + "2"}),  # another content
        release_id("questions", {"a": "0" * 64, "c": "1" * 64}),  # another path
        release_id("questions", {"a": "1" * 64, "b": "0" * 64}),  # contents swapped
        release_id("questions", {"a": "0" * 64}),
        release_id("other", artefacts),
    ]
    assert len({identity, *others}) == 6


def test_hashes_cover_every_file_by_its_path_but_the_manifest(release: Path) -> None:
    hashes = hash_files(release)
    assert hashes.keys() == FILES.keys()
    assert list(hashes) == sorted(hashes)
    assert len(set(hashes.values())) == len(FILES)
