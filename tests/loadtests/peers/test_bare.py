"""`loadtests.peers.bare`: an engine is opened and called as Triton's stub does it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from contract.command import Failure, UsageError
from loadtests.peers.bare import BACKEND, WARMUP_CALLS, bare_engine, load_engine, measure_bare

MODEL = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.config = json.loads(args["model_config"])
        self.calls = []

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "input_ids").as_numpy() for request in requests]
        self.calls.append([array.tolist() for array in arrays])
        if self.config.get("fails"):
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no memory", pb_utils.TritonError.INTERNAL))]
        rows = self.config.get("rows", 1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("logits", np.zeros((rows, 2), np.float32))]) for _ in requests]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bert_engine" / "3").mkdir(parents=True)
    (tmp_path / "bert_engine" / "3" / "model.py").write_text(MODEL)
    return tmp_path / "bert_engine"


def test_the_engine_gets_what_the_stub_gives(folder: Path) -> None:
    engine = load_engine(folder, "3", {"parameters": {}})
    assert (engine.args["model_version"], engine.args["model_repository"]) == ("3", str(folder))
    assert json.loads(engine.args["model_config"]) == {"parameters": {}}
    assert BACKEND not in sys.modules, "the backend that stands in stays behind"


def test_the_measured_texts_begin_with_the_first(folder: Path) -> None:
    engine = load_engine(folder, "3", {})
    measure_bare(engine, [[1], [2, 2], [3]], batch=2, seconds=0.01)
    assert engine.calls[WARMUP_CALLS] == [[[1]], [[2, 2]]]


def test_every_call_holds_a_full_batch_of_the_next_rows(folder: Path) -> None:
    engine = load_engine(folder, "3", {})
    assert measure_bare(engine, [[1], [2, 2], [3]], batch=2, seconds=0.01) > 0
    assert engine.calls[:3] == [[[[1]], [[2, 2]]], [[[3]], [[1]]], [[[2, 2]], [[3]]]]


@pytest.mark.parametrize(
    ("config", "said"), [({"fails": True}, "the engine failed: no memory"), ({"rows": 2}, "one row was given")]
)
def test_a_failed_or_wrong_answer_is_no_measurement(folder: Path, config: dict[str, object], said: str) -> None:
    with pytest.raises(Failure, match=said):
        measure_bare(load_engine(folder, "3", config), [[1]], batch=1, seconds=0.01)


def test_a_folder_without_a_python_model_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="is no python model"):
        load_engine(folder, "4", {})


def test_it_stays_warm_in_a_process_of_its_own_and_measures_when_it_is_told(release: Path) -> None:
    tokenizer = release / "bert_tokenizer" / "tokenizer.json"
    texts, config, deployed = (release.parent / name for name in ("heldout-texts.jsonl", "config.json", "deployed"))
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("the old cat", "a bird", "one dog")))
    config.write_text(json.dumps({"parameters": {"threads": {"string_value": "1"}}}))
    shutil.copytree(release / "bert_engine", deployed / "bert_engine" / "1")
    with bare_engine(str(deployed / "bert_engine"), "1", str(config), str(tokenizer), str(texts), "0", "2") as texts_per_s:
        assert texts_per_s(0.05, 0) > 0
        assert texts_per_s(0.05, 1) > 0


def test_one_that_cannot_open_says_why(tmp_path: Path, release: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "texts.jsonl").write_text('{"text": "the old cat"}\n')
    tokenizer = str(release / "bert_tokenizer" / "tokenizer.json")
    arguments = (str(tmp_path), "7", str(tmp_path / "config.json"), tokenizer, str(tmp_path / "texts.jsonl"), "0", "2")
    with (
        pytest.raises(Failure, match=r"the bare engine ended with code 2: .*model\.py is no python model"),
        bare_engine(*arguments),
    ):
        pass
