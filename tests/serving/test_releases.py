"""Publishing and moving between versions without a server: what is on the disk, what is refused, what the log says."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from contract.release import read_manifest
from contract.tensors import CANDIDATE, ENGINE, ENSEMBLES, TOKENIZER
from serving.deployment import Deployment
from serving.publish import publish
from serving.release_log import ReleaseLog
from serving.releases import ListReleases, Publish, Retire, list_releases, main, show_log
from serving.repository import Repository
from serving.state import ServerState
from serving.switch import promote, retire, rollback, withdraw
from tests.served import deployed
from tests.serving.faults import FAULTS, faulty, variant

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def releases(release: Path, second_release: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three good releases that answer differently."""
    third = variant(release, tmp_path_factory.mktemp("variant") / "release", name="third", shift=0.5)
    return [release, second_release, third]


@pytest.fixture(scope="session")
def template(releases: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with all three published, to copy."""
    return deployed(tmp_path_factory.mktemp("template"), *releases).path


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Repository:
    """A copy of it: version 3 serves, 2 served before, 1 at first."""
    return Repository(Path(shutil.copytree(template, tmp_path / "model_repository")))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, the log and the lock left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in {"releases.jsonl", ".lock"}]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def events(repository: Repository) -> list[str]:
    return [event["event"] for event in ReleaseLog(repository.path).events()]


def test_a_first_release_is_version_1(tmp_path: Path, release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = deployed(tmp_path)
    assert publish(release, repository) == 1
    assert (repository.versions(), repository.offered()) == ([1], [1])
    assert [repository.pinned(ensemble) for ensemble in ENSEMBLES] == [1, 1]
    assert events(repository) == ["copy", "rehearse", "stage", "promote"]
    list_releases(repository)
    assert f"1  {read_manifest(release).release}  <- pinned; no server runs" in capsys.readouterr().out


def test_a_replacement_is_pinned_and_the_one_before_stays_at_hand(repository: Repository) -> None:
    assert (repository.versions(), repository.offered()) == ([1, 2, 3], [2, 3])
    assert [repository.pinned(ensemble) for ensemble in ENSEMBLES] == [3, 3]


def test_rolling_back_goes_further_each_time_until_the_first(repository: Repository) -> None:
    assert [rollback(repository), rollback(repository)] == [2, 1]
    assert [repository.pinned(ensemble) for ensemble in ENSEMBLES] == [1, 1]
    before = contents(repository.path)
    with pytest.raises(UsageError, match="nothing served before version 1"):
        rollback(repository)
    assert contents(repository.path) == before


def test_after_a_rollback_the_next_publish_goes_back_to_what_was_rolled_back_to(repository: Repository, release: Path) -> None:
    rollback(repository)
    assert publish(release, repository) == 4
    assert rollback(repository) == 2


def test_a_promote_moves_to_a_loaded_version_and_a_rollback_returns(repository: Repository) -> None:
    promote(repository, 2)
    assert repository.pinned() == 2
    assert rollback(repository) == 3


@pytest.mark.parametrize(
    ("version", "said"),
    [
        pytest.param(1, "version 1 is not loaded; promote it with --load", id="not loaded"),
        pytest.param(3, "version 3 serves already", id="serves"),
        pytest.param(9, "there is no version 9; there are 1, 2, 3", id="absent"),
    ],
)
def test_a_promote_that_cannot_be_is_refused(repository: Repository, version: int, said: str) -> None:
    before = contents(repository.path)
    with pytest.raises(UsageError, match=said):
        promote(repository, version)
    assert contents(repository.path) == before


def test_an_unloaded_version_is_rehearsed_before_it_is_promoted(repository: Repository) -> None:
    promote(repository, 1, load=True)
    assert (repository.pinned(), repository.offered()) == (1, [1, 2, 3])
    (repository.path / ENGINE / "2" / "model.onnx").write_bytes(b"no graph at all")
    repository.offer([1, 3])
    with pytest.raises(Failure, match=rf"files of version 2 were damaged since it was published: {ENGINE}/model\.onnx"):
        promote(repository, 2, load=True)
    assert (repository.pinned(), repository.offered()) == (1, [1, 3])


def test_a_staged_release_leaves_the_traffic_alone_until_it_is_promoted(repository: Repository, release: Path) -> None:
    assert publish(release, repository, stage=True) == 4
    assert (repository.pinned(), repository.candidate(), repository.offered()) == (3, 4, [2, 3, 4])
    with pytest.raises(UsageError, match="is published already, as version 4, which is the candidate"):
        publish(release, repository)
    promote(repository, 4)
    assert (repository.pinned(), repository.candidate()) == (4, None)


def test_a_withdrawn_candidate_is_out_of_traffic_and_memory(repository: Repository, release: Path) -> None:
    publish(release, repository, stage=True)
    assert withdraw(repository, {"verdict": "bad"}) == 4
    assert (repository.pinned(CANDIDATE), repository.offered(), repository.versions()) == (3, [2, 3], [1, 2, 3, 4])
    assert ReleaseLog(repository.path).events()[-1]["evidence"] == {"verdict": "bad"}
    with pytest.raises(UsageError, match="there is no candidate"):
        withdraw(repository, {})


def test_retiring_deletes_what_is_not_needed(repository: Repository, release: Path) -> None:
    publish(release, repository, stage=True)
    assert retire(repository, [1, 4]) == [1, 4]
    assert (repository.versions(), repository.offered(), repository.pinned(CANDIDATE)) == ([2, 3], [2, 3], 3)
    assert not [path for path in contents(repository.path) if "/4/" in path or "/1/model" in path or "labels-1" in path]
    assert retire(repository, [2], force=True) == [2]
    with pytest.raises(UsageError, match="nothing served before version 3"):
        rollback(repository)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        pytest.param(3, "version 3 serves; promote or roll back", id="serves"),
        pytest.param(2, "version 2 is the one that a rollback goes back to; --force", id="rollback target"),
        pytest.param(9, "there is no version 9", id="absent"),
    ],
)
def test_what_is_needed_is_not_retired(repository: Repository, version: int, said: str) -> None:
    before = contents(repository.path)
    with pytest.raises(UsageError, match=said):
        retire(repository, [1, version])
    assert contents(repository.path) == before


def test_a_retirement_that_is_broken_off_offers_nothing_that_it_has_deleted(
    repository: Repository, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(release, repository, stage=True)
    removed = Repository.remove_version

    def remove(repository: Repository, version: int) -> None:
        removed(repository, version)
        raise KeyboardInterrupt

    monkeypatch.setattr(Repository, "remove_version", remove)
    with pytest.raises(KeyboardInterrupt):
        retire(repository, [4, 1])
    assert (repository.versions(), repository.offered(), repository.pinned(CANDIDATE)) == ([1, 2, 3], [2, 3], 3)


def test_a_version_named_twice_is_retired_once(repository: Repository) -> None:
    assert retire(repository, [1, 1]) == [1]


def test_the_newest_are_kept(repository: Repository, releases: list[Path]) -> None:
    for folder in releases[:2]:
        publish(folder, repository)
    assert repository.versions() == [1, 2, 3, 4, 5]
    assert retire(repository, keep=1) == [1, 2]
    assert retire(repository, keep=1) == []
    assert retire(repository, keep=0) == [3]
    assert repository.versions() == [4, 5]


def test_the_release_that_serves_is_not_published_twice(repository: Repository, releases: list[Path]) -> None:
    with pytest.raises(UsageError, match="is published already, as version 3, which serves"):
        publish(releases[2], repository)
    assert repository.versions() == [1, 2, 3]


def test_a_number_below_another_is_refused_and_one_above_is_taken(repository: Repository, release: Path) -> None:
    for version in (1, 3):
        with pytest.raises(UsageError, match=rf"--version is {version}, and .* has version 3 already; numbers only rise"):
            publish(release, repository, version=version)
    assert publish(release, repository, version=12) == 12
    assert repository.next_version() == 13


def test_a_candidate_needs_something_that_serves(tmp_path: Path, release: Path) -> None:
    with pytest.raises(UsageError, match="publish without --stage"):
        publish(release, deployed(tmp_path), stage=True)


@pytest.mark.parametrize("path", [f"{ENGINE}/model.onnx", f"{TOKENIZER}/tokenizer.json", "labels.txt", "probes.json"])
def test_a_release_changed_after_its_build_is_refused(tmp_path: Path, release: Path, path: str) -> None:
    copy = tmp_path / "changed"
    shutil.copytree(release, copy)
    data = bytearray((copy / path).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / path).write_bytes(bytes(data))
    repository = deployed(tmp_path)
    with pytest.raises(UsageError, match=path):
        publish(copy, repository)
    assert repository.versions() == []


def test_half_a_release_is_refused(tmp_path: Path, release: Path) -> None:
    copy = tmp_path / "half"
    shutil.copytree(release, copy)
    shutil.rmtree(copy / ENGINE)
    with pytest.raises(UsageError, match="changed after it was built"):
        publish(copy, deployed(tmp_path))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_release_is_refused_before_any_server_meets_it(
    repository: Repository, release: Path, tmp_path: Path, fault: str
) -> None:
    before = contents(repository.path)
    with pytest.raises(Failure, match="the release "):
        publish(faulty(release, tmp_path / "faulty", fault), repository)
    assert contents(repository.path) == before
    assert ReleaseLog(repository.path).events()[-1]["event"] == "refuse"


def test_a_release_for_a_newer_runtime_is_refused(repository: Repository, release: Path, tmp_path: Path) -> None:
    copy = tmp_path / "newer"
    shutil.copytree(release, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["versions"]["tokenizers"] = "99.1.0"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Failure, match=r"built for another server, with tokenizers 99\.1\.0, installed is"):
        publish(copy, repository)
    assert repository.versions() == [1, 2, 3]


def test_a_full_disk_changes_nothing(repository: Repository, release: Path) -> None:
    before = contents(repository.path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # room for the log and a config, not for an engine
    try:
        with pytest.raises(Failure, match=r"cannot copy .* File too large.*; nothing was changed"):
            publish(release, repository)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(repository.path) == before
    assert publish(release, repository) == 4


@pytest.mark.parametrize("name", ["write_bytes", "shutil.copytree"])
def test_a_disk_that_fills_at_any_step_changes_nothing(
    repository: Repository, release: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = contents(repository.path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"serving.repository.{name}", full)
        with pytest.raises(Failure, match="No space left on device"):
            publish(release, repository)
    assert contents(repository.path) == before


def test_a_log_that_cannot_be_written_stops_the_publish(repository: Repository, release: Path) -> None:
    log = ReleaseLog(repository.path).path
    log.unlink()
    log.mkdir()
    before = contents(repository.path)
    with pytest.raises(Failure, match="cannot write the release log"):
        publish(release, repository)
    assert contents(repository.path) == before


def moves(release: Path) -> dict[str, Callable[[Repository], object]]:
    return {
        "publish": lambda repository: publish(release, repository),
        "promote": lambda repository: promote(repository, 2),
        "rollback": rollback,
        "retire": lambda repository: retire(repository, [1]),
    }


@pytest.mark.parametrize("name", ["publish", "promote", "rollback", "retire"])
def test_nothing_moves_while_another_publish_runs(repository: Repository, release: Path, name: str) -> None:
    before = contents(repository.path)
    with repository.locked(), pytest.raises(Failure, match="another process is publishing"):
        moves(release)[name](repository)
    assert contents(repository.path) == before


@pytest.mark.parametrize("name", ["publish", "promote", "rollback", "retire", "list"])
def test_a_server_that_is_named_and_left_no_token_is_an_error(repository: Repository, release: Path, name: str) -> None:
    before = contents(repository.path)
    url = "127.0.0.1:9"
    named: dict[str, Callable[[], object]] = {
        "publish": lambda: publish(release, repository, url=url),
        "promote": lambda: promote(repository, 2, url=url),
        "rollback": lambda: rollback(repository, url=url),
        "retire": lambda: retire(repository, [1], url=url),
        "list": lambda: main(ListReleases(repository=repository.path, url=url)),
    }
    with pytest.raises(UsageError, match=r"--url is 127\.0\.0\.1:9, but .*\.server\.json, which a server writes .*, is absent"):
        named[name]()
    assert contents(repository.path) == before


def test_a_server_that_is_named_may_run_where_its_process_is_not_seen(repository: Repository) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    away = "127.0.0.1:9"
    ServerState(pid=ended.pid, control_token="x", grpc_url=away, http_url=away, metrics_url=away).write(repository.path)
    assert Deployment.find(repository).state is None
    state = Deployment.find(repository, "otherhost:8000").state
    assert state is not None and (state.http_url, state.control_token) == ("otherhost:8000", "x")


def test_a_killed_publisher_leaves_nothing_that_the_next_one_minds(repository: Repository, release: Path) -> None:
    repository.copy_in(release, 4)
    publish(release, repository)
    assert not list(repository.path.glob(".staging*"))


def test_the_log_and_the_list_show_what_was_done(repository: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    rollback(repository)
    capsys.readouterr()
    show_log(repository)
    list_releases(repository)
    shown = capsys.readouterr().out
    assert "rollback            version 2  left 3  release second-" in shown
    assert "   3  third\n" in shown
    assert "<- pinned; no server runs\n" in shown
    assert "<- rollback target, not loaded\n" in shown


def test_the_command_runs_every_subcommand(template: Path, release: Path, tmp_path: Path) -> None:
    where = Path(shutil.copytree(template, tmp_path / "model_repository"))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serving.releases", *arguments, "--repository", str(where)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)

    done = run("rollback")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "version 2 serves")
    done = run("promote", "9")
    assert (done.returncode, done.stderr) == (2, "error: there is no version 9; there are 1, 2, 3\n")


def test_the_subcommands_are_called_as_documented(repository: Repository, release: Path) -> None:
    main(Publish(release=release, repository=repository.path, stage=True))
    assert repository.candidate() == 4
    main(Retire(repository=repository.path, keep=0))
    assert repository.versions() == [2, 3, 4]
    with pytest.raises(UsageError, match="version numbers or --keep"):
        Retire(repository=repository.path)
    with pytest.raises(UsageError, match="--shadow-seconds is 0"):
        Publish(release=release, shadow_seconds=0)
