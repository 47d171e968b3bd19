"""`Lanes` of `bert_engine/1/model.py`: calls side by side where that is quicker, with the same answers, counts and failures."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from builders.engines import LANES
from builders.model_config import cpu_engine_config
from tests.model_repository.loader import start_model
from tests.model_repository.test_engine import CONFIG, LENGTHS, ask, expected, fail_on, logits_of, padded, version_folder
from training.bert import BertForSequenceClassification

Array = npt.NDArray[Any]
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: BertForSequenceClassification) -> Path:
    """OpenVINO in fp32, which any processor computes, with the lanes of the lower precisions."""
    folder = version_folder(tmp_path_factory.mktemp("deployed"), checkpoint, "openvino", "fp32")
    settings = json.loads((folder / "1" / "engine.json").read_text())
    assert settings["lanes"] == 1
    (folder / "1" / "engine.json").write_text(json.dumps(settings | {"lanes": LANES}))
    return folder


class Recorder:
    """Lanes whose every call is written down."""

    def __init__(self, lanes: Any) -> None:
        self.lanes, self.gain, self.submitted = lanes, lanes.gain, 0

    def submit(self, *given: Any) -> Any:
        self.submitted += 1
        return self.lanes.submit(*given)


def test_lanes_give_the_checkpoints_logits_whatever_comes_together(
    module: Any, folder: Path, checkpoint: BertForSequenceClassification
) -> None:
    model = start_model(module, folder, cpu_engine_config(), threads="2")
    recorder = Recorder(model.engine.lanes)
    model.engine = model.engine._replace(lanes=recorder)
    for seed in range(4):
        requests = [padded(lengths, seed=seed) for lengths in LENGTHS[seed:]]
        for (ids, mask), response in zip(requests, ask(model, requests), strict=True):
            np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)
    assert recorder.submitted >= LANES


@pytest.mark.parametrize(("threads", "lanes"), [(1, 0), (2, 2), (3, 0), (4, 2)])
def test_there_are_lanes_where_threads_can_be_shared_out_evenly(module: Any, folder: Path, threads: int, lanes: int) -> None:
    engine, _ = module.open_engine(folder / "1", threads)
    assert (engine.lanes.count if engine.lanes else 0) == lanes
    assert engine.most == (module.LANE_TOKENS if lanes else module.MAX_TOKENS)


@pytest.mark.parametrize(
    ("sizes", "quicker"),
    [
        ([100], False),
        ([100, 100], True),
        ([100, 60], True),  # 100 of 160, where all cores for both would take as long as 104
        ([100, 50], False),
        ([100, 100, 100], False),
        ([100, 60, 50], True),
        ([80] * 8, True),
    ],
)
def test_calls_go_to_the_lanes_where_they_spread_evenly(module: Any, sizes: list[int], quicker: bool) -> None:
    assert module.Lanes([print, print]).gain(sizes) is quicker


def engine_of(module: Any, *lanes: Any) -> Any:
    def on_all_cores(ids: Array, mask: Array) -> Array:
        raise AssertionError("not in a lane")

    return module.Engine(on_all_cores, 1, 512, module.LANE_TOKENS, module.Lanes(lanes))


def rows_of(*lengths: int) -> list[Array]:
    return [np.full(length, length, np.int32) for length in lengths]


def test_lanes_compute_at_the_same_time_and_seconds_are_those_of_the_clock(module: Any) -> None:
    meeting = threading.Barrier(LANES)

    def lane(ids: Array, mask: Array) -> Array:
        meeting.wait(PATIENCE_S)  # breaks where the other lane is not at work
        return ids[:, :1].astype(np.float32)

    told: list[dict[str, float]] = []
    began = time.perf_counter()
    rows = rows_of(500, 400, 450, 420)
    logits = module.run_rows(engine_of(module, lane, lane), rows, lambda **amounts: told.append(amounts))
    assert [one.tolist() for one in logits] == [[500], [400], [450], [420]]
    assert sum(one["seconds"] for one in told) <= time.perf_counter() - began
    assert (sum(one["rows"] for one in told), sum(one["calls"] for one in told)) == (4, 4)


def test_no_lane_has_two_calls_at_once(module: Any) -> None:
    class Lane:
        def __init__(self) -> None:
            self.busy = threading.Lock()

        def __call__(self, ids: Array, mask: Array) -> Array:
            assert self.busy.acquire(blocking=False)
            time.sleep(0.001)
            self.busy.release()
            return ids[:, :1].astype(np.float32)

    rows = rows_of(*range(400, 440))
    logits = module.run_rows(engine_of(module, Lane(), Lane()), rows)
    assert [int(one[0]) for one in logits] == list(range(400, 440))


def test_a_failure_in_a_lane_fails_its_own_request(
    module: Any, folder: Path, checkpoint: BertForSequenceClassification
) -> None:
    model = start_model(module, folder, cpu_engine_config(), threads="2")
    poison = CONFIG.vocab_size - 1
    calls = [fail_on(poison, model.engine.lanes.free.get(), []) for _ in range(LANES)]
    whole = fail_on(poison, model.engine.call, [])
    model.engine = model.engine._replace(call=whole, lanes=module.Lanes(calls))
    good = [padded([40 - number], seed=number) for number in range(6)]
    for ids, _ in good:
        ids[ids == poison] = 3
    failing = (np.full((1, 40), poison, np.int32), np.ones((1, 40), np.int32))
    *answers, failed = ask(model, [*good, failing])
    assert failed.error is not None
    assert failed.error.message() == "openvino failed: out of memory"
    for (ids, mask), response in zip(good, answers, strict=True):
        np.testing.assert_allclose(logits_of(response), expected(checkpoint, ids, mask), atol=1e-5, rtol=0)
