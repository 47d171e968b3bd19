"""The deployed repository on the disk: versions, pins, labels, the lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from contract.release import read_manifest
from contract.tensors import CLASSIFIER, ENGINE, ENSEMBLES, STEPS, TOKENIZER
from serving.repository import Repository
from tests.served import deployed


def admitted(repository: Repository, release: Path) -> int:
    """The version that a release was put in as; nothing serves it."""
    version = repository.next_version()
    repository.admit(repository.copy_in(release, version), version)
    return version


def test_a_fresh_repository_has_no_version_and_no_pin(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    repository.check()
    assert (repository.versions(), repository.pinned()) == ([], None)


def test_a_version_is_the_release_plus_the_file_that_keeps_bytecode_out(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path)
    version = admitted(repository, release)
    assert version == 1
    for step in STEPS:
        placed = {path.name for path in (repository.path / step / "1").iterdir()}
        assert placed == {path.name for path in (release / step).iterdir()} | {"__pycache__"}
        assert (repository.path / step / "1" / "__pycache__").is_file()
    assert (repository.path / CLASSIFIER / "labels-1.txt").read_text() == "animal\nplant\n"
    assert repository.release(1) == read_manifest(release).release
    assert not list(repository.path.glob(".staging*"))


def test_a_removed_version_leaves_nothing(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    repository.remove_version(admitted(repository, release))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_offered_versions_reach_every_config_of_every_step(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    repository.offer([4, 3])
    assert repository.offered() == [3, 4]
    configs = [*repository.path.glob("*/config.pbtxt"), *repository.path.glob("*/configs/*.pbtxt")]
    stepped = [path.read_text() for path in configs if path.parts[-2] not in ENSEMBLES]
    assert len(stepped) == 3
    assert all("versions: 3\n    versions: 4" in text for text in stepped)


def test_a_pin_moves_both_steps_and_the_labels(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    version = admitted(repository, release)
    repository.pin(version)
    text = (repository.path / CLASSIFIER / "config.pbtxt").read_text()
    assert text.count("model_version: 2") == 2
    assert 'label_filename: "labels-2.txt"' in text
    assert repository.pinned() == 2


def test_a_version_number_is_above_every_other_even_of_one_step(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path)
    (repository.path / ENGINE / "7").mkdir()
    assert admitted(repository, release) == 8
    assert repository.versions() == [8]


def test_a_second_publisher_is_refused(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    with repository.locked(), pytest.raises(Failure, match="another process is publishing"), repository.locked():
        pass
    with repository.locked():
        pass


def test_a_folder_that_is_no_repository_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{TOKENIZER}, {ENGINE}, {CLASSIFIER} missing"):
        Repository(tmp_path).check()


def test_an_unreadable_config_is_named(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    (repository.path / CLASSIFIER / "config.pbtxt").write_text("name: {")
    with pytest.raises(UsageError, match=r"bert_classifier/config\.pbtxt"):
        repository.pinned()
