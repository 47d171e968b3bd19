"""`builders.tensorrt_release`, `builders.refit`, `builders.input_ranges` and `builders.plan_runner` on a real checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from builders import tensorrt_release
from builders.calibration import Calibration
from builders.engine_record import EngineRecord
from builders.graph_census import refit_differences
from builders.graph_runner import graph_engine, pack
from builders.graph_writer import Typing
from builders.input_ranges import InputRanges, choose_ranges, read_ranges, write_ranges
from builders.parity import BOUNDS, Float32, Int32
from builders.plan_files import ENGINE_JSON, GRAPH_FILE, PLAN_FILE, check_refittable, check_weights_fit
from builders.plan_runner import find_profile, plan_engine
from builders.plan_settings import packed_profile, padded_profiles
from builders.refit import Refit, refit
from builders.standard_graph import standard_onnx
from builders.tensorrt_release import Proof, TensorRTOptions, make_proof, write_engine
from builders.trt_engine import load_tensorrt
from contract.command import Failure, UsageError
from contract.files import read_json, write_json
from contract.tensors import ATTENTION_MASK, INPUT_IDS
from tests.tiny import random_bert, tiny_config
from training.checkpoint import Checkpoint, load_checkpoint

ADA: dict[str, Any] = {"module": "tensorrt_rtx", "compute_capabilities": ("8.9",)}


@pytest.fixture(scope="module")
def checkpoint(merged: Path) -> Checkpoint:
    """The tokenizer and texts of a real checkpoint, with weights that are the same on every machine, and far from steps."""
    found = load_checkpoint(merged)
    return dataclasses.replace(found, model=random_bert(found.model.config, seed=3, std=0.15))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineRecord]:
    """A padded fp16 engine."""
    folder = tmp_path_factory.mktemp("engine")
    return folder, write_engine(folder, checkpoint, precision="fp16", layout="padded", options=TensorRTOptions(**ADA))


def test_an_engine_says_what_it_is_and_how_it_was_proved(engine: tuple[Path, EngineRecord]) -> None:
    folder, record = engine
    assert record.title == "tensorrt fp16"
    assert record.runtime == {"name": "tensorrt_rtx", "version": load_tensorrt("tensorrt_rtx").__version__}
    assert record.parity["bound"] >= BOUNDS["fp16"].logits
    assert 0 < record.parity["max_abs"] <= record.parity["bound"]
    assert record.accuracy["rows"] == record.parity["texts"] > 0
    assert record.profiles == [profile.as_json() for profile in padded_profiles([16], best_batch=8)]
    stated = read_json(folder / ENGINE_JSON)
    assert {key: stated[key] for key in ("kind", "precision", "layout", "refittable", "version_compatible")} == {
        "kind": "tensorrt",
        "precision": "fp16",
        "layout": "padded",
        "refittable": False,
        "version_compatible": False,
    }
    assert stated["proof"]["plan_bytes"] == (folder / PLAN_FILE).stat().st_size
    assert stated["proof"]["network"]["MATRIX_MULTIPLY HALF"] == 6 * 2 + 2 * 2
    assert record.parity["proved_on"] == "its graph on the CPU, rounded as a GPU rounds"
    assert stated["proof"]["inspected"] is None


def test_the_graph_beside_the_plan_is_what_later_weights_are_compared_with(
    engine: tuple[Path, EngineRecord], checkpoint: Checkpoint
) -> None:
    bare = onnx.ModelProto.FromString((engine[0] / GRAPH_FILE).read_bytes())
    assert any("weight" in line for line in refit_differences(bare, standard_onnx(checkpoint.model)))  # fp32 against fp16


@pytest.mark.parametrize(("found", "passes"), [("FP16", True), ("FP32", False)])
def test_where_there_is_a_gpu_the_plan_itself_is_inspected_and_run(
    found: str, passes: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is a stand-in: its inspector says `found`, and its answers are the graph's."""
    tensor = {"Name": "x", "Format/Datatype": f"Row major linear {found} format"}
    gpu = {"gpu": "stand-in", "compute_capability": "8.9", "driver": "1"}
    monkeypatch.setattr(tensorrt_release, "describe_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_release, "open_plan", lambda *_, **__: "engine")
    monkeypatch.setattr(tensorrt_release, "inspect_engine", lambda *_: json.dumps({"Layers": [{"Outputs": [tensor]}]}))
    stand_in = graph_engine(standard_onnx(checkpoint.model, Typing("fp16")))
    monkeypatch.setattr(tensorrt_release, "plan_engine", lambda engine, profiles: stand_in)
    options = TensorRTOptions(module="tensorrt_rtx")
    if not passes:
        with pytest.raises(Failure, match="no layer of the plan is in fp16"):
            write_engine(tmp_path, checkpoint, precision="fp16", layout="padded", options=options)
        assert not list(tmp_path.iterdir())
        return
    record = write_engine(tmp_path, checkpoint, precision="fp16", layout="padded", options=options)
    assert record.parity["proved_on"] == "the plan on stand-in"
    assert record.hardware == gpu | {"compute_capabilities": []}
    assert all(tokens <= 16 for _, tokens in record.parity["shapes"])  # what the profile holds
    assert read_json(tmp_path / ENGINE_JSON)["proof"]["inspected"] == {"fp16": 1}


def test_tensorrt_builds_nothing_where_no_gpu_is_named_to_prove_it_on(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX stands in for TensorRT."""
    built: list[object] = []
    rtx = load_tensorrt("tensorrt_rtx")
    monkeypatch.setattr(tensorrt_release, "load_tensorrt", lambda name: rtx)
    monkeypatch.setattr(tensorrt_release, "describe_gpu", dict)
    monkeypatch.setattr(tensorrt_release, "make_plan", lambda *given: built.append(given))
    with pytest.raises(Failure, match="a GPU that nvidia-smi does not name here, so the plan could not be proved"):
        write_engine(tmp_path, checkpoint, precision="fp16", layout="padded", options=TensorRTOptions())
    assert not built
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_plan_is_asked_every_text_in_batches_that_its_profiles_hold(
    layout: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = padded_profiles([8, 16], best_batch=2, max_batch=4)
    profiles = padded if layout == "padded" else [packed_profile(16, best_tokens=16, best_batch=2, max_tokens=64)]
    exact = graph_engine(standard_onnx(checkpoint.model))
    asked: list[int] = []

    def plan(ids: Int32, mask: Int32) -> Float32:
        feed = pack(ids, mask) if layout == "packed" else {INPUT_IDS: ids, ATTENTION_MASK: mask}
        assert find_profile(profiles, {name: array.shape for name, array in feed.items()}) is not None
        asked.append(len(ids))
        return exact(ids, mask)

    monkeypatch.setattr(tensorrt_release, "plan_engine", lambda engine, profiles: plan)
    parity, accuracy = Proof(make_proof(checkpoint), "fp32", layout).of_plan("engine", profiles)
    assert parity.texts == 32
    assert accuracy is not None
    assert accuracy.rows == 32
    assert max(asked) == 4


@pytest.mark.parametrize(("precision", "layout"), [("fp32", "packed"), ("int8", "padded")])
def test_other_precisions_and_layouts(precision: str, layout: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """int8 observes its ranges on the training texts by itself."""
    options = TensorRTOptions(**ADA, packed_tokens=256)
    record = write_engine(tmp_path, checkpoint, precision=precision, layout=layout, options=options)
    assert (record.precision, record.layout) == (precision, layout)
    assert record.parity["label_agreement"] > 0.95
    names = {name for profile in record.profiles for name in profile}
    assert names == ({INPUT_IDS, "token_offsets"} if layout == "packed" else {INPUT_IDS, ATTENTION_MASK})


def test_a_length_plan_gives_the_profiles(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_json(tmp_path / "lengths.json", {"lengths": [8, 16], "best_batch": 2})
    options = TensorRTOptions(**ADA, lengths=tmp_path / "lengths.json")
    record = write_engine(tmp_path, checkpoint, precision="fp16", layout="padded", options=options)
    assert [profile[INPUT_IDS]["opt"] for profile in record.profiles] == [[2, 8], [2, 16]]


@pytest.mark.parametrize(
    ("precision", "layout", "options", "message"),
    [
        ("fp12", "padded", {}, "known are fp32"),
        ("fp16", "sparse", {}, "--layout is 'sparse'"),
        ("fp16", "padded", {"ranges": {"a": 1.0}}, "ranges are for int8 and fp8"),
        ("int8", "padded", {"refittable": True}, "a int8 plan cannot be refitted"),
        ("int8", "padded", {"ranges": [1]}, "holds no ranges"),
        ("fp16", "packed", {"lengths": {"lengths": [16], "best_batch": 2}}, "--layout packed pads none"),
        ("fp16", "padded", {"lengths": {"lengths": [8], "best_batch": 2}}, r"reaches to \[8\] tokens, the checkpoint reads 16"),
        ("fp16", "padded", {"lengths": {"best_batch": 2}}, "is no length plan"),
        ("fp16", "packed", {"packed_tokens": 8}, r"--tensorrt\.packed-tokens is 8"),
        ("fp16", "padded", {"timing_cache": Path("x")}, "keeps no timing cache"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    precision: str, layout: str, options: dict[str, Any], message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    given = dict(options)
    for name in ("ranges", "lengths"):
        if name in given:
            write_json(tmp_path / name, given[name])
            given[name] = tmp_path / name
    folder = tmp_path / "engine"
    folder.mkdir()
    with pytest.raises(UsageError, match=message):
        write_engine(folder, checkpoint, precision=precision, layout=layout, options=TensorRTOptions(**ADA, **given))
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_batch": 0}, r"--tensorrt\.best-batch is 0"),
        ({"packed_tokens": 0}, r"--tensorrt\.packed-tokens is 0"),
        ({"extra_outputs": ("logit",)}, r"--tensorrt\.extra-outputs has 'logit'"),
        ({"workspace_mib": 0}, r"--tensorrt\.workspace-mib is 0"),
    ],
)
def test_wrong_options_name_the_flag_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRTOptions(**options)


def test_a_graph_of_other_weights_is_no_release(checkpoint: Checkpoint) -> None:
    other = random_bert(checkpoint.model.config, seed=9)
    proof = Proof(make_proof(checkpoint), "fp32", "padded")
    with pytest.raises(Failure, match="graph in fp32 does not equal its checkpoint"):
        proof.of_graph(other, standard_onnx(other))


def test_ranges_are_observed_written_and_read_again(checkpoint: Checkpoint, merged: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "ranges.json"
    write_ranges(InputRanges(checkpoint=merged, output=output, calibration_rows=16))
    ranges = read_ranges(output)
    layers = [path for path, module in checkpoint.model.bert.encoder.named_modules() if isinstance(module, torch.nn.Linear)]
    assert set(ranges) == {f"bert.encoder.{path}" for path in layers}
    first = "bert.encoder.layer.0.attention.self"
    assert ranges[f"{first}.query"] == ranges[f"{first}.key"] > 0  # one tensor enters both


def test_the_percentile_with_the_least_error_is_taken(checkpoint: Checkpoint) -> None:
    texts = ["the cat saw a tree", "a dog near the moss", "we saw a bird", "old fern"]
    found = choose_ranges(checkpoint, "int8", Calibration(texts, texts, [], "these"))
    assert found.errors[found.percentile] == min(found.errors.values())
    with pytest.raises(UsageError, match="there are none"):
        choose_ranges(checkpoint, "int8", Calibration([], [], [], "none"))


def refittable(engine: tuple[Path, EngineRecord], folder: Path) -> Path:
    """A copy of `engine` that says it was built refittable, which TensorRT-RTX without a GPU cannot build."""
    shutil.copytree(engine[0], folder)
    write_json(folder / ENGINE_JSON, read_json(folder / ENGINE_JSON) | {"refittable": True})
    return folder


def test_a_refit_without_a_gpu_fails_clearly_and_writes_nothing(
    engine: tuple[Path, EngineRecord], merged: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    output = tmp_path / "new.plan"
    with pytest.raises(Failure, match="TensorRT cannot open the plan here"):
        refit(Refit(engine=refittable(engine, tmp_path / "engine"), checkpoint=merged, output=output))
    assert not output.exists()
    output.touch()
    with pytest.raises(UsageError, match="exists already"):
        refit(Refit(engine=engine[0], checkpoint=merged, output=output))


def test_ranges_and_refits_are_of_certified_weights(
    engine: tuple[Path, EngineRecord], finetuned: Path, merged: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(merged, tmp_path / "changed"))
    with (changed / "model.safetensors").open("ab") as file:
        file.write(b" ")
    for checkpoint, said in ((finetuned, "merge it first"), (changed, "its certificate says .*: merge again")):
        with pytest.raises(UsageError, match=said):
            refit(Refit(engine=engine[0], checkpoint=checkpoint, output=tmp_path / "new.plan"))
        with pytest.raises(UsageError, match=said):
            write_ranges(InputRanges(checkpoint=checkpoint, output=tmp_path / "ranges.json", calibration_rows=16))


def test_a_plan_takes_no_weights_that_do_not_fit(engine: tuple[Path, EngineRecord], tmp_path: Path) -> None:
    trt = SimpleNamespace(__version__=load_tensorrt("tensorrt_rtx").__version__)
    folder = refittable(engine, tmp_path / "engine")
    fp32 = standard_onnx(random_bert(tiny_config()))
    with pytest.raises(UsageError, match=r"(?s)the weights do not fit into the plan of .*\n  and \d+ more"):
        check_weights_fit(folder, fp32)
    plan = onnx.ModelProto.FromString((folder / GRAPH_FILE).read_bytes())
    check_weights_fit(folder, plan)
    check_refittable(folder, trt)
    with pytest.raises(UsageError, match=r"the plan is of tensorrt_rtx .*, here is 99\.0; build a new one"):
        check_refittable(folder, SimpleNamespace(__version__="99.0"))
    with pytest.raises(UsageError, match=r"was not built --tensorrt\.refittable"):
        check_refittable(engine[0], trt)
    (folder / GRAPH_FILE).write_bytes(b"no graph")
    with pytest.raises(UsageError, match=r"cannot read .*graph\.onnx"):
        check_weights_fit(folder, plan)
    (folder / ENGINE_JSON).write_text(json.dumps({"kind": "onnxruntime"}))
    with pytest.raises(UsageError, match="holds no TensorRT engine"):
        check_refittable(folder, trt)


@pytest.mark.parametrize("refittable_again", [True, False])
def test_a_refitted_plan_says_whether_it_can_be_refitted_again(
    refittable_again: bool,
    engine: tuple[Path, EngineRecord],
    checkpoint: Checkpoint,
    merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The refit itself, which needs a GPU, leaves the plan as it is."""
    for module in ("refit", "tensorrt_release"):
        monkeypatch.setattr(f"builders.{module}.stays_refittable", lambda trt: refittable_again)
        monkeypatch.setattr(f"builders.{module}.refit_plan", lambda trt, plan, graph, **_: plan)
    old, new = refittable(engine, tmp_path / "engine"), tmp_path / "new"
    new.mkdir()
    options = TensorRTOptions(**ADA, refit_from=old)
    write_engine(new, checkpoint, precision="fp16", layout="padded", options=options)
    assert read_json(new / ENGINE_JSON)["refittable"] is refittable_again
    refit(Refit(engine=old, checkpoint=merged, output=tmp_path / "new.plan"))
    assert (tmp_path / "new.plan").read_bytes() == (old / PLAN_FILE).read_bytes()
    assert ("it cannot be refitted again" in capsys.readouterr().out) is not refittable_again


def test_what_cannot_be_refitted_is_refused_before_ranges_are_observed(
    engine: tuple[Path, EngineRecord], checkpoint: Checkpoint, merged: Path, tmp_path: Path
) -> None:
    def calibrate() -> Calibration:
        raise AssertionError("calibrates")

    for folder, said in (
        (engine[0], "was not built"),
        (refittable(engine, tmp_path / "fp16"), "is in fp16, asked for is int8"),
    ):
        options = TensorRTOptions(**ADA, refit_from=folder)
        with pytest.raises(UsageError, match=said):
            write_engine(tmp_path, checkpoint, precision="int8", layout="padded", options=options, calibration=calibrate)
    eight = Path(shutil.copytree(engine[0], tmp_path / "int8"))
    write_json(eight / ENGINE_JSON, read_json(eight / ENGINE_JSON) | {"precision": "int8"})
    with pytest.raises(UsageError, match=r"was not built --tensorrt\.refittable"):
        refit(Refit(engine=eight, checkpoint=merged, output=tmp_path / "new.plan"))


def test_a_build_that_refits_asks_the_same(engine: tuple[Path, EngineRecord], checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = TensorRTOptions(**ADA, refit_from=engine[0])
    with pytest.raises(UsageError, match=r"was not built --tensorrt\.refittable"):
        write_engine(tmp_path, checkpoint, precision="fp16", layout="padded", options=options)
    old = refittable(engine, tmp_path / "engine")
    with pytest.raises(UsageError, match="has other profiles than are asked for"):
        write_engine(
            tmp_path,
            checkpoint,
            precision="fp16",
            layout="padded",
            options=TensorRTOptions(**ADA, refit_from=old, best_batch=4),
        )
    with pytest.raises(UsageError, match=r"built with --tensorrt\.version-compatible False, not True; build a new one"):
        write_engine(
            tmp_path,
            checkpoint,
            precision="fp16",
            layout="padded",
            options=TensorRTOptions(**ADA, refit_from=old, version_compatible=True),
        )


def test_a_profile_is_found_by_its_shapes() -> None:
    profiles = padded_profiles([8, 16], best_batch=2, max_batch=4)
    assert find_profile(profiles, {INPUT_IDS: (4, 8), ATTENTION_MASK: (4, 8)}) == 0
    assert find_profile(profiles, {INPUT_IDS: (1, 9), ATTENTION_MASK: (1, 9)}) == 1
    assert find_profile(profiles, {INPUT_IDS: (5, 9), ATTENTION_MASK: (5, 9)}) is None


def test_a_plan_is_not_run_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(Failure, match="torch sees no GPU"):
        plan_engine(SimpleNamespace(), padded_profiles([8], best_batch=2))
