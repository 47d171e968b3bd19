"""`builders.check` and `builders.tensorrt_config`: what files tell before a server does."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from builders.check import Check, check
from builders.check_rules import Finding, Server, check_python_engine
from builders.containers import find_container
from builders.model_config import CONFIGS, render
from builders.packed_graph import OFFSETS
from builders.plan_settings import packed_profile, padded_profiles
from builders.repository import render_repository
from builders.standard_graph import EXTRA_OUTPUTS, LABEL_INDEX, PROBABILITIES, standard_onnx
from builders.tensorrt_config import TensorRTConfig, fit_repository, main, read_config
from contract.command import Failure, UsageError
from contract.files import read_json, write_json
from contract.release import MANIFEST_FILE, Manifest, hash_files
from contract.tensors import ATTENTION_MASK, ENGINE, ENSEMBLES, INPUT_IDS, STEPS, TOKENIZER
from serving.repository import Repository
from tests.tiny import random_bert, tiny_config

PLAN = b"ftrt" + bytes(range(256)) * 4
PADDED = [profile.as_json() for profile in padded_profiles([16, 64], best_batch=8)]
PACKED = [packed_profile(64, best_tokens=128, best_batch=8, max_tokens=1024).as_json()]
FACTS: dict[str, Any] = {
    "kind": "tensorrt",
    "precision": "fp16",
    "layout": "padded",
    "runtime": {"name": "tensorrt", "version": "11.1.0.106"},
    "hardware": {"gpu": "NVIDIA L4", "compute_capability": "8.9", "driver": "580.65"},
    "profiles": PADDED[:1],
    "version_compatible": False,
    "hardware_compatibility": "none",
}


def tensorrt_release(release: Path, target: Path, *, plan: bytes = PLAN, **changes: Any) -> Path:
    """A copy of a real release whose engine is a TensorRT plan, as far as files tell: nothing here opens it."""
    shutil.copytree(release, target)
    (target / ENGINE / "model.onnx").unlink()
    (target / ENGINE / "model.plan").write_bytes(plan)
    facts = FACTS | changes
    write_json(target / ENGINE / "engine.json", facts)
    manifest = read_json(target / MANIFEST_FILE)
    known = {name: facts[name] for name in ("kind", "precision", "layout", "runtime", "hardware", "profiles")}
    Manifest(**(manifest | known | {"files": hash_files(target)})).write(target)
    return target


def said(folder: Path, capsys: pytest.CaptureFixture[str], *, loads: bool, **options: Any) -> str:
    """What the command prints, and whether it ends well."""
    wanted: dict[str, Any] = {"server": "26.07", "gpu_compute_capability": "8.9"}
    given = Check(folder=folder, **(wanted | options))
    if loads:
        check(given)
    else:
        with pytest.raises(UsageError, match="1 of 1 versions cannot be counted on"):
            check(given)
    return capsys.readouterr().out


def test_a_plan_of_the_servers_tensorrt_and_gpu_loads(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = said(tensorrt_release(release, tmp_path / "r"), capsys, loads=True)
    assert "tritonserver:26.07-py3: Triton 2.71.0, TensorRT 11.1.0.106" in printed
    assert "tensorrt fp16 padded" in printed
    assert printed.rstrip().endswith("loads")


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({}, {"server": "26.08"}, "built with TensorRT 11.1.0.106, the server has 11.2.1; it fits 26.07, or build it again"),
        ({}, {"gpu_compute_capability": "9.0"}, "built on compute capability 8.9, the server has 9.0"),
        ({}, {"server": "26.05"}, "built with TensorRT 11.1.0.106, the server has 10.16.1.11"),
        ({"version_compatible": True}, {"server": "26.05"}, "newer than the server's 10.16.1.11"),
        (
            {"version_compatible": True, "runtime": {"name": "tensorrt", "version": "8.6.1"}},
            {},
            "no compatibility leads from TensorRT 8.6.1 to 11.1.0.106",
        ),
        ({"runtime": {"name": "tensorrt_rtx", "version": "1.7.1"}}, {}, "TensorRT-RTX 1.7.1, which no Triton image serves"),
        ({"hardware_compatibility": "ampere_plus"}, {"gpu_compute_capability": "7.5"}, "the server has 7.5"),
        ({"hardware_compatibility": "same_compute_capability"}, {"gpu_compute_capability": "8.6"}, "the server has 8.6"),
        ({"plan": b"vtrt" + PLAN[4:]}, {}, "TensorRT-RTX's, which tensorrt_plan does not load"),
        ({"plan": b"\x00" * 24 + PLAN}, {}, "24 foreign bytes stand before the plan"),
        ({"plan": b"version https://git-lfs"}, {}, "is no plan: it begins with b'version '"),
        ({"plan": b""}, {}, "is no plan: it begins with b''"),
    ],
)
def test_a_mismatch_is_told_with_its_reason(
    changes: dict[str, Any],
    options: dict[str, Any],
    reason: str,
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = said(tensorrt_release(release, tmp_path / "r", **changes), capsys, loads=False, **options)
    assert "does not load" in printed
    assert reason in printed


@pytest.mark.parametrize(
    ("changes", "options", "note"),
    [
        ({"version_compatible": True}, {"server": "26.08"}, "needs --backend-config=tensorrt,version-compatible=true"),
        (
            {"version_compatible": True, "runtime": {"name": "tensorrt", "version": "10.16.0.72"}},
            {},
            "needs --backend-config=tensorrt,version-compatible=true",
        ),
        ({"hardware_compatibility": "ampere_plus"}, {"gpu_compute_capability": "9.0"}, "loads"),
        ({}, {"server": "26.10", "tensorrt": "11.1.0"}, "TensorRT 11.1.0"),
        ({"runtime": {"name": "tensorrt", "version": "11.0.0.114"}}, {"server": "26.06", "tensorrt": "11.0.0"}, "loads"),
        ({}, {"gpu_compute_capability": None}, "GPU not checked; state it with --gpu-compute-capability"),
    ],
)
def test_what_is_compatible_loads(
    changes: dict[str, Any],
    options: dict[str, Any],
    note: str,
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert note in said(tensorrt_release(release, tmp_path / "r", **changes), capsys, loads=True, **options)


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({}, {"server": "26.09"}, "presumably 11.3.0); look it up there and state it with --tensorrt"),
        (
            {"runtime": {"name": "tensorrt", "version": "11.0.0.114"}},
            {"server": "26.06"},
            "26.06-py3 is not established (11.0.0.114: tensorrt:26.06, not tritonserver's); look it up there",
        ),
        ({}, {"server": "26.06"}, "it was built with TensorRT 11.1.0.106, and that of"),
        ({"hardware": {}}, {}, "does not say which GPU it was built on"),
        ({"runtime": {}}, {}, "does not say which TensorRT built it"),
    ],
)
def test_what_cannot_be_told_is_not_said_to_load(
    changes: dict[str, Any],
    options: dict[str, Any],
    reason: str,
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = said(tensorrt_release(release, tmp_path / "r", **changes), capsys, loads=False, **options)
    assert "not established" in printed
    assert reason in printed


def test_changed_and_missing_files_are_told(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tensorrt_release(release, tmp_path / "r")
    (folder / TOKENIZER / "tokenizer.json").write_text("{}")
    (folder / ENGINE / "model.plan").unlink()
    printed = said(folder, capsys, loads=False)
    assert f"{TOKENIZER}/tokenizer.json was changed after it was built" in printed
    assert f"{ENGINE}/model.plan is missing" in printed


def test_a_cpu_release_loads_as_far_as_what_no_file_tells_is_assumed(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = said(release, capsys, loads=True)
    assert "loads as assumed\n" in printed
    assert "assumed: python backend: the server's Python has onnxruntime" in printed
    assert "the image's own ONNX Runtime backend 1.27.0 reads it too" in printed
    assert "processor" not in printed


def test_a_graph_that_would_have_files_read_outside_its_folder_is_told(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(release, tmp_path / "r"))
    graph = onnx.ModelProto.FromString((folder / ENGINE / "model.onnx").read_bytes())
    weight = graph.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    (folder / ENGINE / "model.onnx").write_bytes(graph.SerializeToString())
    assert "model.onnx keeps weights outside its folder, in ../../secret; build it again" in said(folder, capsys, loads=False)


@pytest.mark.parametrize(
    ("facts", "processor"),
    [
        ({"kind": "openvino", "precision": "bf16", "inference_precision": "bf16"}, "has avx512_bf16 or amx_bf16"),
        ({"kind": "openvino", "precision": "int8", "inference_precision": "bf16"}, "has avx512_bf16 or amx_bf16"),
        ({"kind": "torch", "precision": "bf16"}, "has avx512_bf16 or amx_bf16, or a CUDA GPU"),
        ({"kind": "openvino", "precision": "int8", "inference_precision": "f32"}, None),
    ],
)
def test_an_engine_that_computes_in_bf16_assumes_a_processor_that_does(facts: dict[str, Any], processor: str | None) -> None:
    found = Finding()
    check_python_engine(facts | {"runtime": {"name": facts["kind"], "version": "1"}}, server_of("26.07"), found)
    assert found.assumed[1:] == ([f"its processor {processor}"] if processor else [])
    assert found.verdict == "loads as assumed"


def server_of(tag: str) -> Server:
    """A server of this image, as the table has it."""
    container = find_container(tag)
    return Server(container, container.tensorrt, container.established, None)


def with_version(folder: Path, release: Path, **changes: Any) -> tuple[Path, Path]:
    """(repository, release): a rendered repository with one version of a TensorRT release in it."""
    made, repository = tensorrt_release(release, folder / "made", **changes), folder / "model_repository"
    render_repository(repository)
    for step in STEPS:
        shutil.copytree(made / step, repository / step / "1")
    shutil.copyfile(made / MANIFEST_FILE, repository / TOKENIZER / "1" / MANIFEST_FILE)
    return repository, made


def test_a_deployed_plan_is_compared_with_its_config(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, _ = with_version(tmp_path, release)
    assert "loads" in said(repository, capsys, loads=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"profiles": PADDED}, "the plan has 2 profiles, the config lists 0"),
        (
            {"profiles": [profile.as_json() for profile in padded_profiles([16], best_batch=8, max_batch=8)]},
            "is 64, the plan takes 8",
        ),
        ({"profiles": PACKED, "layout": "packed"}, "the plan is packed, the config is not"),
        ({"outputs": [PROBABILITIES]}, "the plan gives logits, probabilities, the config names logits; python -m"),
        ({"profiles": []}, "does not say which profiles it has"),
    ],
)
def test_a_config_that_does_not_fit_the_plan_is_told(
    changes: dict[str, Any], reason: str, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, _ = with_version(tmp_path, release, **changes)
    assert reason in said(repository, capsys, loads=False)


@pytest.mark.parametrize(
    "changes",
    [{"profiles": PADDED}, {"profiles": PACKED, "layout": "packed"}, {}, {"outputs": list(EXTRA_OUTPUTS)}],
    ids=["profiles", "packed", "plain", "outputs"],
)
def test_fitted_configs_fit(changes: dict[str, Any], release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository, made = with_version(tmp_path, release, **changes)
    main(TensorRTConfig(release=made, repository=repository))
    assert "fitted" in capsys.readouterr().out
    said(repository, capsys, loads=True)
    Repository(repository).check()


def test_a_packed_repository_takes_one_text_a_request_unpadded_and_without_a_mask(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    render_repository(repository)
    fit_repository(repository, FACTS | {"layout": "packed", "profiles": PACKED})
    engine = read_config(repository / ENGINE / "config.pbtxt")
    ids = {"name": INPUT_IDS, "data_type": "TYPE_INT32", "dims": ["-1"], "allow_ragged_batch": True}
    begins = {"kind": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "target_name": [OFFSETS], "source_input": [INPUT_IDS]}
    assert engine["input"] == [ids]
    assert engine["batch_input"] == [{**begins, "data_type": "TYPE_INT32"}]
    assert engine["max_batch_size"] == 16  # of 64 tokens each, within 1024
    tokenizer = read_config(repository / TOKENIZER / "config.pbtxt")
    assert tokenizer["parameters"]["bucket_lengths"] == {"string_value": "1"}
    for name in ENSEMBLES:
        ensemble = read_config(repository / name / "config.pbtxt")
        assert ensemble["max_batch_size"] == 1
        assert [step["input_map"] for step in ensemble["ensemble_scheduling"]["step"] if step["model_name"] == ENGINE] == [
            {INPUT_IDS: INPUT_IDS}
        ]


def test_fitting_back_restores_the_rendered_configs(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    render_repository(repository)
    fit_repository(repository, FACTS | {"layout": "packed", "profiles": PACKED})
    fit_repository(repository, FACTS)
    for name in (ENGINE, *ENSEMBLES):
        rendered = render(CONFIGS[f"{name}/config.pbtxt"]()).decode()
        assert (repository / name / "config.pbtxt").read_text() == rendered


def test_outputs_are_named_as_the_graph_has_them(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    render_repository(repository)
    fit_repository(repository, FACTS | {"outputs": [LABEL_INDEX, PROBABILITIES]})
    config = read_config(repository / ENGINE / "config.pbtxt")
    graph = standard_onnx(random_bert(tiny_config()), outputs=EXTRA_OUTPUTS).graph
    kinds = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.INT32: "TYPE_INT32"}
    types = {value.name: value.type.tensor_type for value in graph.output}
    assert {tensor["name"]: tensor["data_type"] for tensor in config["output"]} == {
        name: kinds[kind.elem_type] for name, kind in types.items()
    }
    for tensor in config["output"]:  # the batch is not in the config; how many labels there are belongs to a release
        wanted = -1 if tensor["name"] != LABEL_INDEX else types[LABEL_INDEX].shape.dim[1].dim_value
        assert tensor["dims"] == [str(wanted)]


def test_several_profiles_are_listed_and_their_lengths_padded_to(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    render_repository(repository)
    fit_repository(repository, FACTS | {"profiles": PADDED})
    assert read_config(repository / ENGINE / "config.pbtxt")["instance_group"][0]["profile"] == ["0", "1"]
    lengths = read_config(repository / TOKENIZER / "config.pbtxt")["parameters"]["bucket_lengths"]
    assert lengths == {"string_value": "16,64"}
    assert ATTENTION_MASK in (repository / ENGINE / "config.pbtxt").read_text()


def test_versions_of_another_layout_are_not_overridden(release: Path, tmp_path: Path) -> None:
    repository, _ = with_version(tmp_path, release)
    before = (repository / ENGINE / "config.pbtxt").read_text()
    with pytest.raises(UsageError, match="is padded, this plan packed; deploy it into a repository of its own"):
        fit_repository(repository, FACTS | {"layout": "packed", "profiles": PACKED})
    assert (repository / ENGINE / "config.pbtxt").read_text() == before


def test_configs_are_not_fitted_while_another_process_publishes(tmp_path: Path) -> None:
    repository = tmp_path / "model_repository"
    render_repository(repository)
    before = Repository(repository).configs()
    with Repository(repository).locked(), pytest.raises(Failure, match="another process is publishing to"):
        fit_repository(repository, FACTS | {"profiles": PADDED})
    assert Repository(repository).configs() == before
    with pytest.raises(UsageError, match="cannot read"):
        fit_repository(tmp_path / "absent", FACTS)


def test_versions_with_other_outputs_are_not_overridden(release: Path, tmp_path: Path) -> None:
    repository, _ = with_version(tmp_path, release, outputs=[PROBABILITIES])
    with pytest.raises(
        UsageError, match="gives logits, probabilities, this plan logits; deploy it into a repository of its own"
    ):
        fit_repository(repository, FACTS)


def test_a_folder_that_is_neither_or_has_no_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a release"):
        check(Check(folder=tmp_path, server="26.07"))
    render_repository(tmp_path / "model_repository")
    with pytest.raises(UsageError, match="has no versions yet"):
        check(Check(folder=tmp_path / "model_repository", server="26.07"))
    with pytest.raises(UsageError, match="cannot read"):
        main(TensorRTConfig(release=tmp_path / "absent"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"server": "latest"}, "--server is 'latest'; known tags"),
        ({"gpu_compute_capability": "L4"}, "write it as 8.9"),
        ({"tensorrt": "newest"}, "no version number"),
    ],
)
def test_wrong_options_name_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Check(folder=Path("r"), **{"server": "26.07", **options})


def test_the_table_of_facts_is_what_engines_write() -> None:
    names = {field.name for field in dataclasses.fields(Manifest)}
    assert {"kind", "precision", "layout", "runtime", "hardware", "profiles"} <= names
