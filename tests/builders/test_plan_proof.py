"""`builders.plan_proof`, `builders.plan_settings`, `builders.containers` and `builders.gpu`: what needs no TensorRT."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builders.containers import CONTAINERS, containers_with, find_container, same_release, version_tuple
from builders.gpu import describe_gpu, parse_gpu
from builders.graph_census import Census
from builders.packed_graph import OFFSETS
from builders.plan_proof import PlanSize, check_inspected, check_network, check_size, proof_record
from builders.plan_settings import PlanSettings, Profile, packed_batch_size, packed_profile, padded_profiles
from contract.command import Failure, UsageError
from contract.tensors import ATTENTION_MASK, INPUT_IDS

MIB = 2**20
HALF = Census({"FLOAT16": 48, "FLOAT": 2}, {}, 0, 0, 0, [])
NETWORK = {("MATRIX_MULTIPLY", "HALF"): 48, ("MATRIX_MULTIPLY", "FLOAT"): 2, ("SOFTMAX", "FLOAT"): 6, ("CAST", "HALF"): 9}


def test_a_network_of_the_graphs_types_passes() -> None:
    check_network(NETWORK, HALF, "fp16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({("MATRIX_MULTIPLY", "HALF"): 47, ("MATRIX_MULTIPLY", "FLOAT"): 3}, "matrix products are in"),
        ({("NORMALIZATION", "HALF"): 1}, "1 NORMALIZATION are in HALF"),
        ({("SOFTMAX", "BF16"): 2}, "2 SOFTMAX are in BF16"),
    ],
)
def test_a_network_in_other_types_is_refused(changes: dict[tuple[str, str], int], message: str) -> None:
    with pytest.raises(Failure, match=message):
        check_network(NETWORK | changes, HALF, "fp16")


@pytest.mark.parametrize(("quantised", "back", "passes"), [("INT8", 60, True), ("FP8", 60, False), ("INT8", 30, False)])
def test_eight_bits_must_be_quantised_as_asked_and_every_weight_brought_back(quantised: str, back: int, passes: bool) -> None:
    network = NETWORK | {("QUANTIZE", quantised): 25, ("DEQUANTIZE", "HALF"): back}
    graph = Census(HALF.products, {}, 36, 0, 0, [])
    if passes:
        check_network(network, graph, "int8")
    else:
        with pytest.raises(Failure, match="is quantised and"):
            check_network(network, graph, "int8")


def test_a_plan_that_fell_back_to_fp32_is_too_large() -> None:
    parameters = 110_000_000
    check_size(PlanSize(int(2.2 * parameters), 2 * parameters, parameters, 1), "fp16")
    with pytest.raises(Failure, match=r"4\.00 a parameter.*TensorRT kept wider weights"):
        check_size(PlanSize(4 * parameters, 2 * parameters, parameters, 1), "fp16")


def test_a_plan_without_its_weights_is_too_small() -> None:
    with pytest.raises(Failure, match="weights were stripped or narrowed"):
        check_size(PlanSize(MIB, 40 * MIB, 20 * MIB, 1), "fp16")


@pytest.mark.parametrize(
    ("tensor", "precision"),
    [
        ({"Name": "a", "Format/Datatype": "Row major linear FP16 format"}, "fp16"),
        ({"Name": "a", "Format/Datatype": "Row major linear BFloat16 format"}, "bf16"),
        ({"Name": "a", "Format": "kLINEAR", "DataType": "Half"}, "fp16"),
        ({"Name": "half", "Format": "Row major linear", "DataType": "FP32"}, "fp32"),
        ({"Name": "a", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Name": "a", "Format": "linear", "Datatype": "FP8 E4M3"}, "fp8"),
    ],
)
def test_the_inspectors_words_for_a_type_are_understood(tensor: dict[str, str], precision: str) -> None:
    information = json.dumps({"Layers": [{"Name": "x", "Outputs": [tensor]}], "Bindings": []})
    assert check_inspected(information, HALF, precision, profiles=1) == Counter({precision: 1})


def test_an_engine_without_the_precision_or_without_details_is_refused() -> None:
    with pytest.raises(Failure, match=r"no layer of the plan is in fp16; its outputs are {'fp32': 9}"):
        check_inspected(built(*[layer("kgen", "FP32")] * 9), HALF, "fp16", profiles=1)
    with pytest.raises(Failure, match="detailed profiling verbosity"):
        check_inspected(json.dumps({"Layers": ["name only"]}), HALF, "fp16", profiles=1)


def layer(kind: str, *types: str, name: str = "__myl_Fc_myl0_4", tactic: str = "") -> dict[str, Any]:
    """A layer as the inspector describes it: all inputs and at last the output."""
    tensors = [{"Name": "t", "Format/Datatype": f"Row major linear {found} format"} for found in types]
    return {"Name": name, "LayerType": kind, "TacticName": tactic, "Inputs": tensors[:-1], "Outputs": tensors[-1:]}


def built(*layers: dict[str, Any]) -> str:
    return json.dumps({"Layers": layers})


@pytest.mark.parametrize(
    "product",
    [
        layer("gemm", "FP32", "FP32"),
        layer("CaskGemmMatrixMultiply", "FP32", "FP32"),
        layer("fusion", "FP32", "FP32", tactic="sm80_xmma_gemm_f32f32_tf32f32"),
        layer("fusion", "FP32", "FP32", name="_gemm_mha_v2_myl0_12"),
        layer("Attention", "FP32", "FP32"),
    ],
)
def test_no_more_layers_of_products_are_wide_than_the_graph_has_wide_products(product: dict[str, Any]) -> None:
    """HALF has two products in FP32, those of the head; with two profiles each may have its own."""
    half, head = layer("gemm", "Half", "Half"), layer("gemm", "FP32", "FP32", name="pooler")
    assert check_inspected(built(half, head, head), HALF, "fp16", profiles=1) == {"fp16": 1, "fp32": 2}
    with pytest.raises(Failure, match=r"3 of 4 layers of matrix products in the plan are not in fp16, .* at most 2"):
        check_inspected(built(half, head, head, product), HALF, "fp16", profiles=1)
    check_inspected(built(half, head, head, product), HALF, "fp16", profiles=2)


def test_other_layers_may_be_wide_whatever_they_are_named() -> None:
    norm = layer("kgen", "FP32", "FP32", name="bert.encoder.layer.0.attention.output.LayerNorm")
    change = layer("Reformat", "FP32", "FP32", name="Reformatting CopyNode for gemm")
    check_inspected(built(layer("gemm", "FP32", "Half"), *[norm] * 5, *[change] * 5), HALF, "fp16", profiles=1)


def test_products_beside_eight_bits_are_those_without_eight_bit_weights() -> None:
    graph = Census({"FLOAT16": 48, "FLOAT": 2}, {}, 48, 0, 0, [])
    eight, half = layer("gemm", "Int8", "Half"), layer("gemm", "Half", "Half")
    check_inspected(built(layer("kgen", "FP32", "Int8"), eight, half, half), graph, "int8", profiles=1)
    with pytest.raises(Failure, match=r"3 of 4 layers of matrix products in the plan are not in int8"):
        check_inspected(built(layer("kgen", "FP32", "Int8"), eight, half, half, half), graph, "int8", profiles=1)


def test_the_record_of_a_proof_is_json() -> None:
    record = proof_record(PlanSize(220, 200, 100, 1), NETWORK, None)
    assert json.loads(json.dumps(record)) == record
    assert record["bytes_per_parameter"] == 2.2
    assert record["network"]["MATRIX_MULTIPLY HALF"] == 48


def test_profiles_touch_and_never_overlap() -> None:
    first, second = padded_profiles([16, 40], best_batch=8, max_batch=64)
    assert first.shapes == dict.fromkeys((INPUT_IDS, ATTENTION_MASK), ((1, 1), (8, 16), (64, 16)))
    assert second.shapes[INPUT_IDS] == ((1, 17), (8, 40), (64, 40))
    assert first.as_json()[INPUT_IDS] == {"min": [1, 1], "opt": [8, 16], "max": [64, 16]}


def test_a_packed_profile_holds_as_many_texts_as_its_tokens_allow() -> None:
    assert packed_batch_size(128, 4096) == 32
    assert packed_batch_size(16, 4096) == 64
    profile = packed_profile(128, best_tokens=600, best_batch=8, max_tokens=4096)
    assert profile.shapes == {INPUT_IDS: ((1,), (600,), (4096,)), OFFSETS: ((2,), (9,), (33,))}
    with pytest.raises(UsageError, match=r"--tensorrt\.packed-tokens is 100"):
        packed_batch_size(128, 100)


@pytest.mark.parametrize("lengths", [[], [0], [8, 8], [9, 8]])
def test_lengths_that_do_not_rise_are_refused(lengths: list[int]) -> None:
    with pytest.raises(UsageError, match="must rise"):
        padded_profiles(lengths, best_batch=1)


def test_batches_and_shapes_that_fall_are_refused() -> None:
    with pytest.raises(UsageError, match="best batch size is 9"):
        padded_profiles([8], best_batch=9, max_batch=8)
    with pytest.raises(UsageError, match="no number may fall"):
        Profile({INPUT_IDS: ((2, 1), (1, 1), (3, 1))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace_mib": 0}, r"--tensorrt\.workspace-mib is 0"),
        ({"optimization_level": 6}, r"--tensorrt\.optimization-level is 6"),
        ({"hardware_compatibility": "all"}, r"--tensorrt\.hardware-compatibility is 'all'"),
        ({"compute_capabilities": ("89",)}, r"--tensorrt\.compute-capabilities has '89'"),
    ],
)
def test_wrong_settings_name_the_flag_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PlanSettings(**options)


def test_containers_are_found_by_tag_and_by_tensorrt() -> None:
    assert find_container("26.07-py3").image == "nvcr.io/nvidia/tritonserver:26.07-py3"
    assert [found.tag for found in containers_with("10.14.1.48")] == ["25.11", "25.12"]
    assert [found.tag for found in containers_with("11.2.1.2")] == ["26.08"]
    with pytest.raises(UsageError, match=r"'26\.13'; known tags .*26\.07"):
        find_container("26.13")


def test_the_table_rises_and_says_what_is_not_established() -> None:
    assert [found.tag for found in CONTAINERS] == sorted(found.tag for found in CONTAINERS)
    known = [version_tuple(found.tensorrt) for found in CONTAINERS if found.tensorrt]
    assert known == sorted(known)
    assert not any(found.established for found in CONTAINERS if found.tensorrt is None)


def test_versions_are_compared_in_three_numbers_as_far_as_both_have_them() -> None:
    assert same_release("11.2.1.2", "11.2.1")
    assert same_release("10.14.1.48", "10.14.1.2")
    assert not same_release("10.14.1", "10.14.2")
    with pytest.raises(UsageError, match="no version number"):
        version_tuple("latest")


def test_a_gpu_is_read_from_its_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert describe_gpu(str(tmp_path / "absent")) == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA L4, 8.9, 580.65.06'\necho 'NVIDIA L4, 8.9, 580.65.06'\n")
    tool.chmod(0o755)
    assert describe_gpu(str(tool)) == {"gpu": "NVIDIA L4", "compute_capability": "8.9", "driver": "580.65.06"}
    tool.write_text('#!/bin/sh\necho "$3, 8.9, 580"\n')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert describe_gpu(str(tool))["gpu"] == "--id=1"
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert describe_gpu(str(tool)) == {}
    assert parse_gpu("No devices were found\n") == {}
