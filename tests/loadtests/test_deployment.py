"""`loadtests.deployment`: settings written into real configurations, and a release published alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builders.repository import render_repository
from contract.command import Failure, UsageError
from contract.tensors import BUCKET_LENGTHS, ENGINE, TOKENIZER
from loadtests.deployment import Setting, apply, publish_alone, served, template_hashes
from serving.repository import Repository
from tests.served import deployed

PLAIN = Setting(release="build/fp32", instances=1, threads=0)
BUSY = Setting(release="build/int8", instances=3, threads=2, batch=8, delay_us=1500, buckets=(64, 512))


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    render_repository(tmp_path / "model_repository")
    return tmp_path / "model_repository"


def config(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def engine_configs(repository: Path) -> list[Any]:
    return [config(path) for path in (repository / ENGINE).rglob("*.pbtxt")]


def test_a_setting_is_in_the_configurations_that_triton_reads(rendered: Path) -> None:
    apply(BUSY, rendered)
    assert len(engine_configs(rendered)) >= 2
    for engine in engine_configs(rendered):
        assert [group.count for group in engine.instance_group] == [3]
        assert engine.dynamic_batching.max_queue_delay_microseconds == 1500
        assert list(engine.dynamic_batching.preferred_batch_size) == [8]
    parameters = [engine.parameters for engine in engine_configs(rendered)]
    assert {each["threads"].string_value for each in parameters if "threads" in each} == {"2"}
    assert config(rendered / TOKENIZER / "config.pbtxt").parameters["bucket_lengths"].string_value == "64,512"


def test_a_later_setting_takes_the_place_of_an_earlier_one(rendered: Path) -> None:
    apply(PLAIN, rendered)
    plain = {path: path.read_text(encoding="utf-8") for path in rendered.rglob("*.pbtxt")}
    apply(BUSY, rendered)
    assert plain != {path: path.read_text(encoding="utf-8") for path in rendered.rglob("*.pbtxt")}
    apply(PLAIN, rendered)
    assert plain == {path: path.read_text(encoding="utf-8") for path in rendered.rglob("*.pbtxt")}


@pytest.mark.parametrize("broken", ["", "instance_group {\n  count: 1\n}\ninstance_group {\n  count: 1\n}\n"])
def test_a_configuration_that_is_not_as_rendered_is_refused(rendered: Path, broken: str) -> None:
    path = rendered / ENGINE / "config.pbtxt"
    text = path.read_text(encoding="utf-8")
    begin = text.index("instance_group {")
    end = text.index("dynamic_batching {")
    path.write_text(text[:begin] + broken + text[end:], encoding="utf-8")
    with pytest.raises(Failure, match=rf"config\.pbtxt has {broken.count('count')} places for 3 where one was expected"):
        apply(BUSY, rendered)


def test_the_hashes_of_a_template_change_with_a_setting_and_not_with_a_version(rendered: Path) -> None:
    apply(PLAIN, rendered)
    before = template_hashes(rendered)
    assert len(before) >= 3
    for path in rendered.rglob("*.pbtxt"):
        path.write_text(path.read_text(encoding="utf-8").replace("versions: 1\n", "versions: 7\n"), encoding="utf-8")
    assert template_hashes(rendered) == before
    apply(BUSY, rendered)
    assert all(template_hashes(rendered)[path] != hashed for path, hashed in before.items())
    with pytest.raises(UsageError, match="is not a deployed repository"):
        template_hashes(rendered / "absent")


def test_a_setting_says_what_differs_from_the_defaults() -> None:
    assert str(PLAIN) == "fp32: 1 x default threads"
    assert str(BUSY) == "int8: 3 x 2 threads, waits 1500 us for 8 texts, buckets 64,512"
    assert PLAIN.buckets == BUCKET_LENGTHS


def test_a_release_is_published_alone_and_the_template_is_left_as_it_was(
    release: Path, second_release: Path, tmp_path: Path
) -> None:
    template = deployed(tmp_path / "template", release)
    before = sorted(path.relative_to(tmp_path) for path in template.path.rglob("*"))
    publish_alone(second_release, template.path, tmp_path / "alone")
    alone = Repository(tmp_path / "alone")
    assert (alone.versions(), alone.pinned()) == ([1], 1)
    assert alone.release(1).startswith("second-")
    assert sorted(path.relative_to(tmp_path) for path in template.path.rglob("*")) == before


def test_what_cannot_be_published_or_served_fails_with_the_commands_own_words(rendered: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a deployed repository"):
        publish_alone(tmp_path, tmp_path / "absent", tmp_path / "target")
    with pytest.raises(Failure, match=r"cannot publish .*absent: error: cannot read .*manifest\.json"):
        publish_alone(tmp_path / "absent", rendered, tmp_path / "target")
    with pytest.raises(Failure, match="did not start: error: no release is published"), served(rendered):
        raise AssertionError("nothing can be served")
