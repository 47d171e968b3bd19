"""The deployed repository on the disk: versions, pins, labels, the lock."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from builders.model_config import CONFIGS
from contract.command import Failure, UsageError
from contract.release import MANIFEST_FILE, read_manifest
from contract.repository import STARTING
from contract.tensors import CANDIDATE, CLASSIFIER, ENGINE, ENSEMBLES, STEPS, TOKENIZER
from serving.repository import Repository
from tests.served import deployed, wait_until


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
        papers = {"manifest.json", "probes.json", "labels.txt"} if step == TOKENIZER else set()
        assert placed == {path.name for path in (release / step).iterdir()} | {"__pycache__"} | papers
        assert (repository.path / step / "1" / "__pycache__").is_file()
    for ensemble in ENSEMBLES:
        assert (repository.path / ensemble / "labels-1.txt").read_text() == "animal\nplant\n"
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
    assert len(stepped) == len([name for name in CONFIGS if name.split("/")[0] in STEPS])
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


def test_a_publisher_waits_for_a_server_that_starts_and_a_server_for_a_publisher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = deployed(tmp_path)
    order: list[str] = []

    def hold(doing: str, waiter: threading.Thread) -> None:
        with repository.locked(doing):
            waiter.start()
            assert wait_until(lambda: "; waiting" in capsys.readouterr().out)
            order.append(doing)
        waiter.join(60)

    def wait(doing: str, wait_s: float) -> None:
        with repository.locked(doing, wait_s=wait_s):
            order.append(doing)

    hold(STARTING, threading.Thread(target=wait, args=("publishing to", 0.0)))
    hold("publishing to", threading.Thread(target=wait, args=(STARTING, 60.0)))
    assert order == [STARTING, "publishing to", "publishing to", STARTING]


def test_a_server_that_starts_for_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = deployed(tmp_path)
    monkeypatch.setattr("contract.repository.START_WAIT_S", 0.0)
    with (
        repository.locked(STARTING),
        pytest.raises(Failure, match="another process is starting a server on"),
        repository.locked(),
    ):
        pass


def test_instances_are_those_of_the_config_that_python_models_are_served_with(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    assert [repository.instances(step) for step in (TOKENIZER, ENGINE)] == [1, 1]
    config = repository.path / ENGINE / "configs" / "cpu.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 3") + "instance_group { kind: KIND_CPU }\n")
    assert [repository.instances(step) for step in (TOKENIZER, ENGINE)] == [1, 4]


def test_a_folder_that_is_no_repository_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{TOKENIZER}, {ENGINE}, {CLASSIFIER}, {CANDIDATE} missing"):
        Repository(tmp_path).check()


def test_an_unreadable_config_is_named(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    (repository.path / CLASSIFIER / "config.pbtxt").write_text("name: {")
    with pytest.raises(UsageError, match=r"bert_classifier/config\.pbtxt"):
        repository.pinned()


def test_what_was_changed_is_restored_and_nothing_else_is_touched(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    configs = repository.configs()
    assert len(configs) == len(CONFIGS)
    repository.offer([1, 2])
    repository.pin(2)
    untouched = (repository.path / CANDIDATE / "config.pbtxt").stat().st_mtime_ns
    repository.restore(configs)
    assert repository.configs() == configs
    assert (repository.path / CANDIDATE / "config.pbtxt").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("break_version", [1, 2, 3])
def test_before_a_start_damaged_versions_are_offered_no_longer_but_for_the_one_that_serves(
    tmp_path: Path, release: Path, break_version: int
) -> None:
    repository = deployed(tmp_path, release)
    for _ in range(2):
        admitted(repository, release)
    repository.offer([1, 2, 3])
    repository.pin(3, CANDIDATE)
    assert repository.offer_whole() == []
    (repository.path / ENGINE / str(break_version) / "model.onnx").write_bytes(b"")
    assert repository.damaged(break_version) == [f"{ENGINE}/model.onnx"]
    assert repository.offer_whole() == ([] if break_version == 1 else [break_version])
    assert repository.offered() == [version for version in (1, 2, 3) if version in (1, 5 - break_version) or break_version == 1]
    assert repository.pinned(CANDIDATE) == (1 if break_version == 3 else 3)


def test_before_a_start_the_version_that_serves_can_be_offered_alone(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    for _ in range(2):
        admitted(repository, release)
    repository.offer([1, 2, 3])
    repository.pin(3, CANDIDATE)
    assert (repository.others(), repository.offer_alone()) == ([2, 3], [2, 3])
    assert (repository.offered(), repository.candidate()) == ([1], None)
    assert (repository.others(), repository.offer_alone()) == ([], [])


def test_a_version_without_its_manifest_is_damaged_and_keeps_no_server_from_starting(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    admitted(repository, release)
    repository.offer([1, 2])
    (repository.folder(2) / MANIFEST_FILE).write_text("{")
    assert repository.damaged(2) == [MANIFEST_FILE]
    assert repository.offer_whole() == [2]
    assert repository.offered() == [1]


def test_a_python_step_has_its_config_as_its_model_reads_it(tmp_path: Path) -> None:
    repository = deployed(tmp_path)
    for step in STEPS:
        config = repository.step_config(step)
        assert config["name"] == step
        assert all("string_value" in value for value in config["parameters"].values())
    (repository.path / ENGINE / "configs" / "cpu.pbtxt").unlink()
    assert repository.step_config(ENGINE) == {}  # a plan, which no python model serves
