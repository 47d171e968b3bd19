"""`builders.trt_engine` against a real TensorRT builder: TensorRT-RTX, which needs no GPU.

The plans have the widths of MiniLM and of BERT-base, random weights, and a small vocabulary: its rows are copied, not compiled.
BERT-base has two of its twelve layers here, which are all alike.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from builders import trt_engine
from builders.graph_census import census
from builders.graph_writer import Typing
from builders.packed_graph import packed_onnx
from builders.plan_progress import progress_monitor
from builders.plan_proof import PlanSize, check_network, check_size
from builders.plan_settings import PlanSettings, packed_profile, padded_profiles
from builders.standard_graph import EXTRA_OUTPUTS, standard_onnx
from builders.trt_engine import build_plan, check_version, load_tensorrt, open_plan, refit_plan
from contract.command import Failure, UsageError
from tests.builders.test_standard_graph import typing_of
from tests.tiny import random_bert, tiny_config
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig

VOCABULARY = 1000
SHAPES = {
    "minilm": BertConfig(vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
    "base": BertConfig(vocab_size=VOCABULARY, num_hidden_layers=2),
}
ADA = PlanSettings(compute_capabilities=("8.9",))
WRITERS = {"padded": standard_onnx, "packed": packed_onnx}
PROFILES = {
    "padded": padded_profiles([128], best_batch=8),
    "packed": [packed_profile(128, best_tokens=512, best_batch=8, max_tokens=2048)],
}
CASES = [
    *(("minilm", precision, "padded") for precision in ("fp32", "fp16", "bf16", "int8")),
    *(("base", precision, "packed") for precision in ("fp32", "fp16", "bf16", "int8", "fp8")),
    ("minilm", "fp16", "packed"),
    ("base", "int8", "padded"),
]


@pytest.fixture(scope="module")
def trt() -> Any:
    return load_tensorrt("tensorrt_rtx")


@pytest.fixture(scope="module")
def models() -> dict[str, BertForSequenceClassification]:
    torch.manual_seed(0)
    return {name: BertForSequenceClassification(config).eval() for name, config in SHAPES.items()}


def tiny_graph(layout: str = "padded", precision: str = "fp16") -> onnx.ModelProto:
    model = random_bert(tiny_config())
    return WRITERS[layout](model, typing_of(precision, model))


def tiny_plan(trt: Any, settings: PlanSettings = ADA) -> bytes:
    return build_plan(trt, tiny_graph(), padded_profiles([16], best_batch=4), settings).data


@pytest.mark.parametrize(("name", "precision", "layout"), CASES, ids=str)
def test_plans_are_built_in_the_precision_asked_for(
    name: str, precision: str, layout: str, trt: Any, models: dict[str, BertForSequenceClassification]
) -> None:
    model = models[name]
    graph = WRITERS[layout](model, typing_of(precision, model))
    built = build_plan(trt, graph, PROFILES[layout], ADA)
    counted = census(graph)
    check_network(built.network, counted, precision)
    size = PlanSize(len(built.data), counted.weight_bytes, counted.parameters, 1)
    check_size(size, precision)
    assert built.data.startswith(b"vtrt")
    assert built.warnings == []
    width = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}[precision]
    assert width * 0.95 < size.bytes_per_parameter < width * 1.3 + 0.6  # kernels weigh more beside few bytes


def test_several_profiles_several_gpus_and_the_extra_outputs(trt: Any) -> None:
    graph = standard_onnx(random_bert(tiny_config()), outputs=EXTRA_OUTPUTS)
    settings = PlanSettings(compute_capabilities=("8.6", "12.0"), optimization_level=1, workspace_mib=512)
    built = build_plan(trt, graph, padded_profiles([8, 16, 40], best_batch=4), settings)
    assert len(built.data) > census(graph).weight_bytes
    assert built.network["SOFTMAX", "FLOAT"] == 3  # two layers and the probabilities


def test_every_error_of_the_parser_is_told(trt: Any) -> None:
    graph = tiny_graph()
    node = next(node for node in graph.graph.node if node.op_type == "Gelu")
    node.op_type, node.domain = "Unheard", "of.nobody"
    graph.opset_import.append(onnx.helper.make_opsetid("of.nobody", 1))
    with pytest.raises(Failure, match=r"cannot parse the graph:\n  bert\.encoder\.layer\.0\.intermediate: .*Plugin not found"):
        build_plan(trt, graph, padded_profiles([16], best_batch=4), ADA)


def test_a_build_that_fails_tells_tensorrts_reason(trt: Any) -> None:
    with pytest.raises(Failure, match=r"(?s)could not build the plan\n.*workspace"):
        build_plan(
            trt, tiny_graph(), padded_profiles([16], best_batch=4), PlanSettings(compute_capabilities=("8.9",), workspace_mib=1)
        )


def test_a_profile_of_other_inputs_is_refused(trt: Any) -> None:
    with pytest.raises((Failure, ValueError)):
        build_plan(trt, tiny_graph(), PROFILES["packed"], ADA)


@pytest.mark.parametrize(
    ("settings", "profiles", "message"),
    [
        ({"refittable": True}, 2, "a refittable plan has one profile, not 2"),
        ({"timing_cache": Path("cache")}, 1, "keeps no timing cache"),
        ({"hardware_compatibility": "ampere_plus"}, 1, r"told its GPUs by --tensorrt\.compute-capabilities"),
        ({"compute_capabilities": ("9.0",)}, 1, r"has 9\.0; this TensorRT-RTX builds for 7\.5, .*12\.1"),
    ],
)
def test_settings_that_tensorrt_rtx_lacks_are_refused(settings: dict[str, Any], profiles: int, message: str, trt: Any) -> None:
    with pytest.raises(UsageError, match=message):
        trt_engine.check_settings(trt, PlanSettings(**settings), profiles=profiles)


def test_compute_capabilities_are_for_tensorrt_rtx_alone() -> None:
    with pytest.raises(UsageError, match=r"is for --tensorrt\.module tensorrt_rtx"):
        trt_engine.check_settings(SimpleNamespace(), ADA, profiles=1)


@pytest.mark.filterwarnings("ignore:.*[Tt]iming cache.*:DeprecationWarning")
def test_timings_are_read_where_the_builder_keeps_them(trt: Any, tmp_path: Path) -> None:
    config = trt.Builder(trt_engine.log_of(trt)).create_builder_config()
    trt_engine.read_timing_cache(config, tmp_path / "absent.cache")

    class Refusing:
        def create_timing_cache(self, _: bytes) -> None:
            return None

    with pytest.raises(Failure, match=r"other\.cache is no timing cache of this GPU"):
        trt_engine.read_timing_cache(Refusing(), tmp_path / "other.cache")


def test_a_plan_cannot_be_opened_without_a_gpu_and_the_reason_is_told(trt: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    plan = tiny_plan(trt)
    for call in (lambda: open_plan(trt, plan), lambda: refit_plan(trt, plan, tiny_graph())):
        with pytest.raises(Failure, match=r"(?s)cannot open the plan here\n.*[Cc]uda"):
            call()


class FakeRefit:
    """TensorRT's refit as its documentation has it; the real one needs a GPU. Notes what was set in `said`."""

    def __init__(self, *, refittable: bool = True, parses: bool = True, missing: tuple[str, ...] = ()) -> None:
        said = self.said = list[str]()
        config = SimpleNamespace(clear_flag=lambda flag: said.append(f"-{flag}"), set_flag=lambda flag: said.append(f"+{flag}"))
        engine = SimpleNamespace(
            refittable=refittable,
            create_serialization_config=lambda: config,
            serialize_with_config=lambda _: bytearray(b"new plan"),
        )
        parser = SimpleNamespace(
            refit_from_bytes=lambda data: parses, num_errors=1, get_error=lambda _: SimpleNamespace(desc=lambda: "too large")
        )
        self.ILogger = load_tensorrt("tensorrt_rtx").ILogger
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
        self.Refitter = lambda *_: SimpleNamespace(
            refit_cuda_engine=lambda: not missing, get_missing_weights=lambda: list(missing)
        )
        self.OnnxParserRefitter = lambda *_: parser
        self.SerializationFlag = SimpleNamespace(EXCLUDE_WEIGHTS="exclude", INCLUDE_REFIT="refit")


def test_a_refitted_plan_keeps_its_weights_and_can_be_refitted_again() -> None:
    fake = FakeRefit()
    assert refit_plan(fake, b"plan", tiny_graph()) == b"new plan"
    assert fake.said == ["-exclude", "+refit"]
    del fake.SerializationFlag.INCLUDE_REFIT  # before 10.14
    fake.said.clear()
    refit_plan(fake, b"plan", tiny_graph())
    assert fake.said == ["-exclude"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refittable": False}, r"was not built --tensorrt\.refittable"),
        ({"parses": False}, r"does not take the weights:\n  too large"),
        ({"missing": ("a", "b")}, "weights are missing for the refit: a, b"),
    ],
)
def test_a_refit_that_fails_says_why(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure, match=message):
        refit_plan(FakeRefit(**options), b"plan", tiny_graph())


def test_a_plan_of_another_program_is_told_by_its_magic(trt: Any) -> None:
    with pytest.raises(Failure, match="magicTag"):
        open_plan(trt, b"ftrt" + tiny_plan(trt)[4:])


@contextmanager
def bar_that(act: Any) -> Iterator[SimpleNamespace]:
    """A progress bar whose first update does `act`."""
    state = SimpleNamespace(total=0, done=0, acted=False)

    def update(count: int) -> None:
        state.done += count
        if count and not state.acted:
            state.acted = True
            act()

    state.update = update
    yield state


def test_an_interrupt_stops_the_build_and_is_not_swallowed(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_engine, "tqdm", lambda **_: bar_that(lambda: signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt):
        tiny_plan(trt)


def test_progress_ends_where_it_said_it_would(trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with bar_that(lambda: None) as bar:
        monkeypatch.setattr(trt_engine, "tqdm", lambda **_: bar_that_is(bar))
        tiny_plan(trt)
    assert bar.done == bar.total > 100


@contextmanager
def bar_that_is(bar: SimpleNamespace) -> Iterator[SimpleNamespace]:
    yield bar


def test_phases_that_end_early_count_as_done(trt: Any) -> None:
    with bar_that(lambda: None) as bar:
        monitor = progress_monitor(trt, bar)
        monitor.phase_start("build", None, 3)
        monitor.phase_start("clone", "build", 10)
        assert monitor.step_complete("clone", 0) is True
        monitor.phase_finish("clone")
        assert (bar.total, bar.done) == (13, 10)
        monitor.phase_finish("build")
        assert bar.done == 13


def test_a_module_that_is_absent_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UsageError, match=r"tensorrt cannot be imported .*nvcr\.io/nvidia/tritonserver:25\.10-py3 or a later"):
        load_tensorrt("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(UsageError, match="pip install tensorrt-rtx-cu13-libs"):
        load_tensorrt("tensorrt_rtx")
    with pytest.raises(UsageError, match=r"--tensorrt\.module is 'torch'"):
        load_tensorrt("torch")


def test_a_module_that_is_too_old_says_so() -> None:
    check_version("tensorrt", "10.13.0.35")
    check_version("tensorrt", "11.4.0.106")
    with pytest.raises(UsageError, match=r"tensorrt is 10\.3\.0; at least 10\.13 is needed"):
        check_version("tensorrt", "10.3.0")


def test_without_a_builder_the_reason_is_told(trt: Any) -> None:
    class Without:
        ILogger = trt.ILogger

        @staticmethod
        def Builder(_: Any) -> None:  # noqa: N802
            raise TypeError("factory function returned nullptr")

    with pytest.raises(Failure, match=r"no builder here \(factory function returned nullptr\); it needs the GPU"):
        build_plan(Without, tiny_graph(), PROFILES["padded"], PlanSettings())


def test_the_network_of_another_precision_is_told_from_the_one_asked_for(trt: Any) -> None:
    model = random_bert(tiny_config())
    built = build_plan(trt, standard_onnx(model, Typing("fp16")), padded_profiles([16], best_batch=4), ADA)
    with pytest.raises(Failure, match="matrix products are in"):
        check_network(built.network, census(standard_onnx(model, Typing("bf16"))), "bf16")
