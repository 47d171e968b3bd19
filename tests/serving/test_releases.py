"""Publishing: without a server, into a running one under load, and releases that must be refused."""

from __future__ import annotations

import shutil
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from clients import ClassifierError, connect
from clients.transport import GrpcTransport
from contract.command import Failure, UsageError
from contract.release import hash_files, read_manifest
from contract.tensors import ENGINE, LOGITS, RELEASE, TOKENIZER
from serving.releases import list_releases, publish
from tests.served import deployed, serving, wait_until
from tests.tiny import tiny_texts

TEXT = tiny_texts(1)[0][0]


@dataclass
class Load:
    """Clients that classify one text over and over, and what they got."""

    url: str
    clients: int = 4
    answers: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=lambda: defaultdict(list))
    """The logits that each release gave."""
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _work(self) -> None:
        transport = GrpcTransport(self.url, 10.0)
        text = np.array([[TEXT.encode()]], dtype=object)
        while not self._stop.is_set():
            try:
                answer = transport.infer(text, classes=False)
            except ClassifierError as error:
                self.errors.append(str(error))
            else:
                self.answers[answer[RELEASE][0, 0].decode()].append(answer[LOGITS][0])
        transport.close()

    def during(self, action: Callable[[], None]) -> None:
        """Run `action` while the clients work."""
        threads = [threading.Thread(target=self._work) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            action()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


def damaged(release: Path, target: Path, path: str, data: bytes) -> Path:
    """A copy of `release` with one file replaced, and a manifest that vouches for it: only serving it can tell."""
    shutil.copytree(release, target)
    (target / path).write_bytes(data)
    manifest = read_manifest(release)
    object.__setattr__(manifest, "files", hash_files(target))
    manifest.write(target)
    return target


def test_a_first_release_is_version_1(tmp_path: Path, release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = deployed(tmp_path)
    assert publish(release, repository) == 1
    assert (repository.versions(), repository.offered(), repository.pinned()) == ([1], [1], 1)
    list_releases(repository)
    assert f"1  {read_manifest(release).release}  <- pinned; no server runs" in capsys.readouterr().out


def test_without_a_server_a_replacement_is_pinned_alone(tmp_path: Path, release: Path, second_release: Path) -> None:
    repository = deployed(tmp_path, release, second_release)
    assert (repository.versions(), repository.offered(), repository.pinned()) == ([1, 2], [2], 2)


def test_the_release_that_serves_is_not_published_twice(tmp_path: Path, release: Path) -> None:
    repository = deployed(tmp_path, release)
    with pytest.raises(UsageError, match="is published already, as version 1"):
        publish(release, repository)
    assert repository.versions() == [1]


@pytest.mark.parametrize("path", [f"{ENGINE}/model.onnx", f"{TOKENIZER}/tokenizer.json", "labels.txt"])
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


@pytest.mark.server
def test_a_replacement_under_load_fails_no_request_and_mixes_no_answer(
    tmp_path: Path, release: Path, second_release: Path
) -> None:
    repository = deployed(tmp_path, release)
    names = [read_manifest(folder).release for folder in (release, second_release)]
    with serving(repository) as state:
        load = Load(state.grpc_url)

        def replace() -> None:
            assert wait_until(lambda: len(load.answers[names[0]]) > 100)
            publish(second_release, repository)
            assert wait_until(lambda: len(load.answers[names[1]]) > 100)

        load.during(replace)
        with connect(state.grpc_url) as classifier:
            assert classifier.classify([TEXT])[0].release == names[1]
    assert load.errors == []
    first, second = (np.stack(load.answers.pop(name)) for name in names)
    assert not load.answers
    # The releases disagree widely and each is of one mind, so an engine under the other's name would stand out.
    assert np.abs(first[0] - second[0]).max() > 0.1
    assert max(np.ptp(first, axis=0).max(), np.ptp(second, axis=0).max()) < 1e-3
    assert repository.offered() == [1, 2]


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "data"),
    [
        pytest.param(f"{ENGINE}/model.onnx", b"no graph at all", id="corrupt engine"),
        pytest.param(f"{TOKENIZER}/tokenizer.json", b"{}", id="corrupt tokenizer"),
        pytest.param(f"{TOKENIZER}/release.json", b'{"release": "somebody-else"}', id="answers under another name"),
    ],
)
def test_a_release_that_does_not_serve_is_taken_out_while_the_old_one_serves_on(
    tmp_path: Path, release: Path, second_release: Path, path: str, data: bytes
) -> None:
    bad = damaged(second_release, tmp_path / "bad", path, data)
    repository = deployed(tmp_path, release)

    def refused() -> None:
        with pytest.raises(Failure):
            publish(bad, repository)

    with serving(repository) as state:
        load = Load(state.grpc_url)
        load.during(refused)
        assert load.errors == []
        assert (repository.versions(), repository.offered(), repository.pinned()) == ([1], [1], 1)
        # The server is whole: the good release goes in afterwards.
        publish(second_release, repository)
        with connect(state.grpc_url) as classifier:
            assert classifier.classify([TEXT])[0].release == read_manifest(second_release).release
