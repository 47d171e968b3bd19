"""`bert_engine/1/model.py` over each runtime: the checkpoint's logits, however the batcher mixes requests.

Shapes: B rows of a request, T its padded length, C classes.
"""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch

from builders.engines import Source, find_kind, write_files
from builders.model_config import cpu_engine_config
from tests.model_repository import fake_backend
from tests.model_repository.fake_backend import InferenceRequest, InferenceResponse, TritonError
from tests.model_repository.loader import load_module, start_model
from tests.tiny import tiny_config
from training.bert import BertForSequenceClassification

Array = npt.NDArray[Any]

CONFIG = tiny_config()
LENGTHS = [[3], [40, 1, 7], [12, 12], [1], [2, 39, 5, 5, 31], [16], [8, 9]]  # tokens of the rows of each request


def version_folder(root: Path, checkpoint: BertForSequenceClassification, kind: str, precision: str) -> Path:
    """A deployed `bert_engine` in `root` with one version."""

    def no_int8() -> Any:
        raise AssertionError("no int8 engine is written here")

    folder = root / f"{kind}-{precision}" / "bert_engine"
    (folder / "1").mkdir(parents=True)
    write_files(folder / "1", find_kind(kind, precision, frozenset({"avx512_bf16"})), Source(checkpoint, no_int8))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: BertForSequenceClassification) -> Path:
    """One with ONNX Runtime's engine."""
    return version_folder(tmp_path_factory.mktemp("deployed"), checkpoint, "onnxruntime", "fp32")


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def model(
    module: Any, tmp_path_factory: pytest.TempPathFactory, checkpoint: BertForSequenceClassification, request: Any
) -> Any:
    folder = version_folder(tmp_path_factory.mktemp("deployed"), checkpoint, request.param, "fp32")
    return start_model(module, folder, cpu_engine_config(), threads="1")


def padded(lengths: list[int], *, extra: int = 0, seed: int = 0) -> tuple[Array, Array]:
    """Random (input_ids, attention_mask), int32 [B, T], T = the longest + `extra`; the padding holds a token, not zeros."""
    generator = np.random.default_rng([seed, *lengths])
    ids = np.full((len(lengths), max(lengths) + extra), 7, dtype=np.int32)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = generator.integers(0, CONFIG.vocab_size, length)
        mask[row, :length] = 1
    return ids, mask


def ask(model: Any, requests: list[tuple[Array, Array]]) -> list[InferenceResponse]:
    """One response a request."""
    sent = [InferenceRequest(input_ids=ids, attention_mask=mask) for ids, mask in requests]
    responses: list[InferenceResponse] = model.execute(sent)
    assert len(responses) == len(requests)
    return responses


def logits_of(response: InferenceResponse) -> Array:
    assert response.error is None, response.error.message()
    assert list(response.arrays) == [tensor["name"] for tensor in cpu_engine_config()["output"]]
    logits = response.arrays["logits"]
    assert logits.dtype == np.float32
    return logits


@torch.inference_mode()
def expected(checkpoint: BertForSequenceClassification, ids: Array, mask: Array) -> Array:
    """The checkpoint's own logits in double precision, each row alone and unpadded."""
    exact = copy.deepcopy(checkpoint).double()
    rows = [exact(torch.from_numpy(row[kept == 1])[None]) for row, kept in zip(ids, mask, strict=True)]
    logits: Array = torch.cat(rows).numpy()
    return logits


def assert_refused(response: InferenceResponse, said: str) -> None:
    assert response.error is not None
    assert said in response.error.message()
    assert response.error.code() == TritonError.INVALID_ARG
    assert not response.arrays


@pytest.mark.parametrize("seed", range(4))
def test_logits_are_the_checkpoints_for_mixed_lengths_and_any_order(
    model: Any, checkpoint: BertForSequenceClassification, seed: int
) -> None:
    order = random.Random(seed).sample(LENGTHS, len(LENGTHS))
    requests = [padded(lengths, extra=seed * number % 3, seed=seed) for number, lengths in enumerate(order)]
    for (ids, mask), response in zip(requests, ask(model, requests), strict=True):
        np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("length", "columns"), [(1, 8), (7, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_lengths_are_filled_up_to_the_step_but_never_beyond_what_the_model_reads(
    module: Any, length: int, columns: int
) -> None:
    seen: list[tuple[Array, Array]] = []

    def engine(ids: Array, mask: Array) -> Array:
        seen.append((ids, mask))
        return np.zeros((len(ids), 2), np.float32)

    ids, mask = padded([length, 1])
    module.Engine(engine, 8, 20)(ids, mask)
    for given, filled in zip((ids, mask), seen[0], strict=True):
        assert filled.shape == (2, columns)
        assert filled.dtype == np.int32
        assert (filled[:, :length] == given).all()
        assert not filled[:, length:].any()


def test_a_row_without_a_token_keeps_its_length(module: Any) -> None:
    shape = module.Engine(lambda ids, mask: np.array(ids.shape), 8, 20)
    ids = np.ones((2, 5), np.int32)
    assert shape(ids, np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.int32)).tolist() == [2, 5]
    assert shape(ids, np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], np.int32)).tolist() == [2, 8]


def test_what_fills_a_call_up_is_counted_as_padding(module: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    told: list[dict[str, float]] = []

    def call(ids: Array, mask: Array) -> Array:
        shapes.append(ids.shape)
        return np.zeros((len(ids), 2), np.float32)

    rows = [np.ones(length, np.int32) for length in (5, 50, 7, 17)]
    module.run_rows(module.Engine(call, 8, 60), rows, lambda **amounts: told.append(amounts))
    assert shapes == [(2, 8), (1, 24), (1, 56)]
    assert [(one["tokens"], one["padding_tokens"]) for one in told] == [(12, 4), (17, 7), (50, 6)]


def test_filling_up_changes_no_logits(module: Any, tmp_path: Path, checkpoint: BertForSequenceClassification) -> None:
    folder = version_folder(tmp_path, checkpoint, "openvino", "fp32")
    aligned = module.open_engine(folder / "1")[0]
    settings = json.loads((folder / "1" / "engine.json").read_text())
    (folder / "1" / "engine.json").write_text(json.dumps(settings | {"length_step": 1}))
    exact = module.open_engine(folder / "1")[0]
    for length in (1, 7, 8, 13, CONFIG.max_position_embeddings):
        given = padded([length, 1])
        np.testing.assert_allclose(aligned(*given), exact(*given), atol=1e-6, rtol=0)


def test_extra_padding_changes_nothing(model: Any) -> None:
    bare = ask(model, [padded(lengths) for lengths in LENGTHS])
    for extra in (1, 13):
        for alone, padded_too in zip(bare, ask(model, [padded(lengths, extra=extra) for lengths in LENGTHS]), strict=True):
            np.testing.assert_allclose(logits_of(padded_too), logits_of(alone), atol=1e-6, rtol=0)


def test_a_full_batch_of_requests_is_answered_request_by_request(model: Any, checkpoint: BertForSequenceClassification) -> None:
    requests = [padded([1 + number % 40], seed=number) for number in range(64)]
    for (ids, mask), response in zip(requests, ask(model, requests), strict=True):
        np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)


def bad_id() -> tuple[Array, Array]:
    return np.array([[3, CONFIG.vocab_size]], np.int32), np.ones((1, 2), np.int32)


def negative_id() -> tuple[Array, Array]:
    return np.array([[3, -1]], np.int32), np.ones((1, 2), np.int32)


def too_long() -> tuple[Array, Array]:
    length = CONFIG.max_position_embeddings + 1
    return np.ones((1, length), np.int32), np.ones((1, length), np.int32)


def gap() -> tuple[Array, Array]:
    return np.ones((1, 3), np.int32), np.array([[1, 0, 1]], np.int32)


def other_shape() -> tuple[Array, Array]:
    return np.ones((1, 3), np.int32), np.ones((1, 2), np.int32)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bad_id, "out of range"),
        (negative_id, "out of range"),
        (too_long, "out of range"),
        (gap, "ones and then zeros"),
        (other_shape, "shape of input_ids"),
    ],
)
def test_a_bad_request_fails_alone_and_its_neighbours_are_answered(
    model: Any, checkpoint: BertForSequenceClassification, make: Any, said: str
) -> None:
    good = [padded(lengths) for lengths in LENGTHS]
    responses = ask(model, [*good[:2], make(), *good[2:]])
    assert_refused(responses.pop(2), said)
    for (ids, mask), response in zip(good, responses, strict=True):
        np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)


def test_a_bad_request_alone_is_refused(model: Any) -> None:
    (response,) = ask(model, [bad_id()])
    assert_refused(response, "out of range")


def fail_on(token: int, engine: Any, calls: list[int]) -> Any:
    """`engine`, whose runtime fails on every batch with this token; `calls` are the rows of each call."""

    def failing(ids: Array, mask: Array) -> Array:
        calls.append(len(ids))
        if (ids == token).any():
            raise RuntimeError("out of memory")
        logits: Array = engine(ids, mask)
        return logits

    return failing


def test_a_failure_of_the_runtime_is_the_servers_and_its_neighbours_are_answered(
    module: Any, folder: Path, checkpoint: BertForSequenceClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REPORT_S", 0.0)
    model = start_model(module, folder, cpu_engine_config(), threads="1")
    model.engine = model.engine._replace(call=fail_on(CONFIG.vocab_size - 1, model.engine.call, []))
    ids = np.array([[3, 4, 5]], np.int32)
    mask = np.ones_like(ids)
    good, failing = (ids, mask), (np.full_like(ids, CONFIG.vocab_size - 1), mask)
    first, refused, failed, last = ask(model, [good, gap(), failing, good])
    assert_refused(refused, "ones and then zeros")
    assert failed.error is not None
    assert failed.error.code() == TritonError.INTERNAL
    assert failed.error.message() == "onnxruntime failed: out of memory"
    for response in (first, last):
        np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)
    assert metrics_of(model)["bert_engine_refused_total"] == 2


def test_bad_input_costs_its_neighbours_no_call(module: Any, folder: Path) -> None:
    model = start_model(module, folder, cpu_engine_config(), threads="1")
    calls: list[int] = []
    model.engine = model.engine._replace(call=fail_on(-1, model.engine.call, calls))
    ask(model, [padded([4]), bad_id(), padded([4])])
    assert calls == [2]


def test_one_bad_row_fails_its_whole_request(model: Any) -> None:
    ids, mask = padded([5, 3])
    ids[1, 2] = CONFIG.vocab_size
    (response,) = ask(model, [(ids, mask)])
    assert_refused(response, "out of range")


def test_the_exported_torch_program_gives_the_checkpoints_logits(
    module: Any, tmp_path: Path, checkpoint: BertForSequenceClassification
) -> None:
    folder = version_folder(tmp_path, checkpoint, "torch", "fp32")
    model = start_model(module, folder, cpu_engine_config(), threads="1")
    requests = [padded(lengths) for lengths in LENGTHS]
    for (ids, mask), response in zip(requests, ask(model, requests), strict=True):
        np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)


def test_a_torch_program_moves_to_another_device_as_a_whole(
    module: Any, tmp_path: Path, checkpoint: BertForSequenceClassification
) -> None:
    """The device `meta`, which computes shapes alone, stands in for a GPU."""
    program = module.read_program(version_folder(tmp_path, checkpoint, "torch", "fp32") / "1", "meta")
    named = [node.kwargs["device"] for node in program.graph.nodes if "device" in node.kwargs]
    assert named, "the graph names no device"
    assert {torch.device(name).type for name in named} == {"meta"}
    assert {tensor.device.type for tensor in (*program.parameters(), *program.buffers())} == {"meta"}
    ids, mask = (torch.from_numpy(one).to("meta") for one in padded([5, 3]))
    assert program(input_ids=ids, attention_mask=mask).shape == (2, CONFIG.num_labels)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_torch_program_on_the_device_of_its_export_gives_the_same_bits(
    module: Any, tmp_path: Path, checkpoint: BertForSequenceClassification, precision: str
) -> None:
    folder = version_folder(tmp_path, checkpoint, "torch", precision) / "1"
    exported, opened = torch.export.load(folder / "model.pt2").module(), module.read_program(folder, "cpu")
    for lengths in LENGTHS:
        given = {name: torch.from_numpy(one) for name, one in zip(module.INPUTS, padded(lengths), strict=False)}
        with torch.inference_mode():
            assert torch.equal(opened(**given), exported(**given))


@pytest.mark.parametrize(("threads", "used"), [("3", 3), ("0", len(os.sched_getaffinity(0)))], ids=["three", "every core"])
def test_threads_are_those_of_the_config_and_0_means_every_core(
    module: Any, folder: Path, threads: str, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[onnxruntime.SessionOptions] = []
    real = onnxruntime.InferenceSession

    def recording(path: str, options: onnxruntime.SessionOptions, **rest: Any) -> Any:
        seen.append(options)
        return real(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    start_model(module, folder, cpu_engine_config(), threads=threads)
    assert [options.intra_op_num_threads for options in seen] == [used]
    assert seen[0].get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_an_engine_in_bf16_is_refused_by_a_processor_without_it(
    module: Any, tmp_path: Path, checkpoint: BertForSequenceClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = version_folder(tmp_path, checkpoint, "openvino", "bf16")

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    monkeypatch.setattr(module, "openvino_core", Core)
    with pytest.raises(RuntimeError, match="computes in bf16, which this processor lacks: build the release on this machine"):
        module.open_engine(folder / "1")


def metrics_of(model: Any) -> dict[str, float]:
    return {name: counter.value for name, counter in model.counters.items()}


def test_what_is_computed_and_refused_is_counted(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_S", 0.0)
    model = start_model(module, folder, cpu_engine_config(), threads="1")
    ask(model, [padded([3, 5]), padded([40])])
    ask(model, [gap()])
    counted = metrics_of(model)
    assert counted.pop("bert_engine_seconds_total") > 0
    assert counted == {
        "bert_engine_rows_total": 3,
        "bert_engine_tokens_total": 48,
        "bert_engine_padding_tokens_total": 2,
        "bert_engine_calls_total": 2,
        "bert_engine_refused_total": 1,
    }
    assert model.counters["bert_engine_rows_total"].labels == {"model": "bert_engine", "version": "1"}


def test_a_server_without_metrics_is_served_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fake_backend, "MetricFamily")
    model = start_model(load_module("bert_engine"), folder, cpu_engine_config(), threads="1")
    logits_of(ask(model, [padded([3])])[0])
    assert metrics_of(model) == {}


def test_numpy_2_is_refused(module: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "__version__", "2.0.0")
    with pytest.raises(RuntimeError, match=r"numpy 2\.0\.0.*install numpy<2"):
        start_model(module, folder, cpu_engine_config())
