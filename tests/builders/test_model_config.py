"""`builders.model_config`: the committed configs are the rendered ones, Triton's own classes read them, their wiring holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from builders.model_config import CONFIGS, render, render_configs, tokenizer_config
from contract.tensors import (
    ATTENTION_MASK,
    BUCKET_LENGTHS,
    CANDIDATE,
    CLASSIFIER,
    ENGINE,
    ENSEMBLES,
    INPUT_IDS,
    LOGITS,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    MAX_TEXT_BYTES,
    MAX_WAIT_MS,
    RELEASE,
    STEPS,
    TEXT,
    TOKENIZER,
    TRUNCATED,
)

COMMITTED = Path(__file__).resolve().parents[2] / "model_repository"
STEP_CONFIGS = [name for name in CONFIGS if name.split("/")[0] in STEPS]
ENGINE_CONFIGS = [name for name in CONFIGS if name.startswith(ENGINE)]


def parse(name: str) -> Any:
    """A committed config as Triton's own message."""
    return text_format.Parse((COMMITTED / name).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def tensors(values: Any) -> dict[str, tuple[str, list[int]]]:
    """Name -> (type, dims) of a config's inputs or outputs."""
    return {value.name: (model_config_pb2.DataType.Name(value.data_type), list(value.dims)) for value in values}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_committed_config_is_the_rendered_one(name: str) -> None:
    hint = "run python -m builders.model_config model_repository"
    assert (COMMITTED / name).read_bytes() == render(CONFIGS[name]()), hint


def test_no_config_is_committed_that_is_not_rendered() -> None:
    assert {path.relative_to(COMMITTED).as_posix() for path in COMMITTED.rglob("*.pbtxt")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_being_parsed_and_names_its_own_folder(name: str) -> None:
    config = parse(name)
    assert config == json_format.ParseDict(CONFIGS[name](), model_config_pb2.ModelConfig())
    assert config.name == name.split("/", maxsplit=1)[0]
    assert config.max_batch_size == MAX_BATCH_SIZE


def test_a_field_that_triton_does_not_have_is_refused() -> None:
    with pytest.raises(json_format.ParseError, match="dynamic_batchin"):
        render(tokenizer_config() | {"dynamic_batchin": {}})


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(json_format.ParseError, match="max_batch_size"):
        render(tokenizer_config() | {"max_batch_size": "many"})


def test_the_command_renders_every_config_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "builders.model_config", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=COMMITTED.parent)
    assert (done.returncode, done.stderr) == (0, "")
    for name in CONFIGS:
        assert (tmp_path / "new" / name).read_bytes() == (COMMITTED / name).read_bytes()


def test_rendering_replaces_what_was_edited_by_hand(tmp_path: Path) -> None:
    render_configs(tmp_path)
    path = tmp_path / TOKENIZER / "config.pbtxt"
    path.write_text("name: 'other'")
    render_configs(tmp_path)
    assert path.read_bytes() == (COMMITTED / TOKENIZER / "config.pbtxt").read_bytes()


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_what_a_client_sees_is_the_contract(ensemble: str) -> None:
    config = parse(f"{ensemble}/config.pbtxt")
    assert tensors(config.input) == {TEXT: ("TYPE_STRING", [1])}
    assert tensors(config.output) == {
        LOGITS: ("TYPE_FP32", [-1]),
        TRUNCATED: ("TYPE_BOOL", [1]),
        RELEASE: ("TYPE_STRING", [1]),
    }
    assert {output.name: output.label_filename for output in config.output} == {
        LOGITS: "labels-1.txt",
        TRUNCATED: "",
        RELEASE: "",
    }


@pytest.mark.parametrize("engine", ENGINE_CONFIGS)
def test_every_wire_of_the_ensemble_ends_at_tensors_of_one_type(engine: str) -> None:
    ensemble = parse(f"{CLASSIFIER}/config.pbtxt")
    configs = {TOKENIZER: parse(f"{TOKENIZER}/config.pbtxt"), ENGINE: parse(engine)}
    flowing = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        inputs, outputs = tensors(configs[step.model_name].input), tensors(configs[step.model_name].output)
        assert set(step.input_map) == set(inputs)  # Triton wants every input of a step wired
        for name, source in step.input_map.items():
            assert inputs[name] == flowing[source]  # an earlier step, or the request, has it
        flowing |= {target: outputs[name] for name, target in step.output_map.items()}
    assert {name: flowing[name] for name in tensors(ensemble.output)} == tensors(ensemble.output)
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == list(STEPS)


def test_no_output_of_a_step_is_left_unused() -> None:
    ensemble = parse(f"{CLASSIFIER}/config.pbtxt")
    consumed = {source for step in ensemble.ensemble_scheduling.step for source in step.input_map.values()}
    produced = {target for step in ensemble.ensemble_scheduling.step for target in step.output_map.values()}
    assert produced <= consumed | set(tensors(ensemble.output))


@pytest.mark.parametrize("name", STEP_CONFIGS)
def test_a_step_serves_one_version_and_batches_what_waits(name: str) -> None:
    config = parse(name)
    assert list(config.version_policy.specific.versions) == [1]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize("name", STEP_CONFIGS)
def test_a_queue_is_bounded_by_its_policy_only_where_the_tokenizer_cannot_bound_it(name: str) -> None:
    """A python step has no policy at all: with one, the server stops prefetching."""
    batching = parse(name).dynamic_batching
    policy = batching.default_queue_policy
    assert batching.HasField("default_queue_policy") == (parse(name).backend != "python")
    assert policy.max_queue_size == (0 if parse(name).backend == "python" else MAX_QUEUE_SIZE)
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.TimeoutAction.Value("REJECT")


def test_the_candidate_is_the_classifier_once_more() -> None:
    config = parse(f"{CANDIDATE}/config.pbtxt")
    config.name = CLASSIFIER
    assert config == parse(f"{CLASSIFIER}/config.pbtxt")


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_an_ensemble_is_pinned_to_the_first_version(ensemble: str) -> None:
    steps = parse(f"{ensemble}/config.pbtxt").ensemble_scheduling.step
    assert [step.model_version for step in steps] == [1, 1]


def test_both_engines_take_and_give_the_same_tensors() -> None:
    wanted = {INPUT_IDS: ("TYPE_INT32", [-1]), ATTENTION_MASK: ("TYPE_INT32", [-1])}
    for name in ENGINE_CONFIGS:
        assert tensors(parse(name).input) == wanted
        assert tensors(parse(name).output) == {LOGITS: ("TYPE_FP32", [-1])}


def test_tensorrt_is_the_default_engine_and_the_cpu_engine_a_choice() -> None:
    tensorrt, cpu = parse(f"{ENGINE}/config.pbtxt"), parse(f"{ENGINE}/configs/cpu.pbtxt")
    assert (tensorrt.platform, tensorrt.backend) == ("tensorrt_plan", "")
    assert (cpu.platform, cpu.backend) == ("", "python")
    kinds = model_config_pb2.ModelInstanceGroup
    assert [(group.count, group.kind) for group in cpu.instance_group] == [(1, kinds.KIND_CPU)]
    assert [(group.count, group.kind) for group in tensorrt.instance_group] == [(1, kinds.KIND_GPU)]
    assert [tensor.allow_ragged_batch for tensor in cpu.input] == [True, True]
    assert [tensor.allow_ragged_batch for tensor in tensorrt.input] == [False, False]


def test_the_containers_own_onnx_runtime_opens_the_file_of_the_release_on_a_cpu() -> None:
    config = parse(f"{ENGINE}/configs/onnxruntime.pbtxt")
    assert (config.platform, config.backend, config.default_model_filename) == ("", "onnxruntime", "model.onnx")
    assert [group.kind for group in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    assert [tensor.allow_ragged_batch for tensor in config.input] == [False, False]  # that backend takes [B, T] alone


@pytest.mark.parametrize("name", [name for name in STEP_CONFIGS if parse(name).backend == "python"])
def test_a_python_model_is_given_every_parameter_that_it_reads(name: str) -> None:
    config = parse(name)
    source = (COMMITTED / config.name / "1" / "model.py").read_text(encoding="utf-8")
    assert set(re.findall(r'parameters\["(\w+)"\]', source)) == set(config.parameters)


def test_the_tokenizers_limits_are_the_contracts() -> None:
    parameters = {key: value.string_value for key, value in parse(f"{TOKENIZER}/config.pbtxt").parameters.items()}
    assert parameters == {
        "bucket_lengths": ",".join(map(str, BUCKET_LENGTHS)),
        "max_text_bytes": str(MAX_TEXT_BYTES),
        "max_wait_ms": str(MAX_WAIT_MS),
    }
    assert list(BUCKET_LENGTHS) == sorted(set(BUCKET_LENGTHS))
