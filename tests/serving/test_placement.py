"""How many instances of the engine a release states is how many its deployment starts."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import onnxruntime
import pytest

from builders.model_config import parse
from builders.repository import render_repository
from clients import connect
from contract.command import Failure
from contract.files import read_json, write_json
from contract.tensors import ENGINE, LOGITS, TOKENIZER
from serving.publish import publish
from serving.repository import Repository
from serving.stubs import child_pids, find_children
from tests.served import deployed, serving, wait_until


def stating(release: Path, folder: Path, instances: int) -> Path:
    """A copy of a release whose manifest states so many instances."""
    copy = Path(shutil.copytree(release, folder))
    manifest = read_json(copy / "manifest.json")
    placement = {"instances": instances, "threads": 1}
    write_json(copy / "manifest.json", manifest | {"hardware": manifest["hardware"] | {"placement": placement}})
    return copy


def count(repository: Repository, name: str = "configs/cpu.pbtxt") -> int:
    found: int = parse((repository.path / ENGINE / name).read_bytes())["instance_group"][0]["count"]
    return found


def stubs(server: int) -> Counter[tuple[str, int]]:
    return Counter((stub.model, stub.version) for stub in find_children(server).stubs)


def test_a_release_that_states_nothing_leaves_the_deployment_as_it_is(
    release: Path, second_release: Path, tmp_path: Path
) -> None:
    repository = deployed(tmp_path, release)
    assert count(repository) == 1
    repository.lay_out(2, 1)
    publish(second_release, repository)
    assert (count(repository), count(repository, "config.pbtxt"), count(repository, "configs/onnxruntime.pbtxt")) == (2, 1, 2)


def test_the_containers_onnx_runtime_is_told_threads_and_the_shape_of_the_logits(release: Path, tmp_path: Path) -> None:
    """It opens a graph only where the config has the very shape of its outputs, the batch aside."""
    repository = deployed(tmp_path)
    publish(stating(release, tmp_path / "stating", 2), repository)
    config = parse((repository.path / ENGINE / "configs" / "onnxruntime.pbtxt").read_bytes())
    session = onnxruntime.InferenceSession(str(release / ENGINE / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs = {output.name: [str(size) for size in output.shape[1:]] for output in session.get_outputs()}
    assert {tensor["name"]: tensor["dims"] for tensor in config["output"]} == outputs
    assert config["parameters"]["intra_op_thread_count"] == {"string_value": "1"}
    others = [parse(text) for path, text in repository.configs().items() if path.name != "onnxruntime.pbtxt"]
    assert {tuple(tensor["dims"]) for config in others for tensor in config["output"] if tensor["name"] == LOGITS} == {("-1",)}


def test_a_publish_that_fails_leaves_the_number_as_it_was(
    release: Path, second_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = deployed(tmp_path, release)

    def fail(*_: object) -> None:
        raise Failure("the disk is full")

    monkeypatch.setattr("serving.publish._load_beside", fail)
    with pytest.raises(Failure, match="the disk is full"):
        publish(stating(second_release, tmp_path / "two", 2), repository)
    assert count(repository) == 1


@pytest.mark.server
def test_a_deployment_starts_and_changes_to_what_is_stated(release: Path, second_release: Path, tmp_path: Path) -> None:
    render_repository(tmp_path / "model_repository")
    repository = Repository(tmp_path / "model_repository")
    publish(stating(release, tmp_path / "two", 2), repository)
    with serving(repository) as state, connect(state.grpc_url) as classifier:
        (server,) = child_pids(state.pid)
        assert wait_until(lambda: stubs(server) == {(ENGINE, 1): 2, (TOKENIZER, 1): 1})
        before = [answer.label for answer in classifier.classify(["a cat near the moss"] * 8)]
        publish(stating(second_release, tmp_path / "one", 1), repository)
        assert wait_until(lambda: stubs(server)[ENGINE, 2] == 1), stubs(server)
        assert len(classifier.classify(["a cat near the moss"] * 8)) == len(before)
