"""The two served models with numbers beside the text: checked by name in the tokenizer, at their rows in the engine.

Shapes: B rows of a request, T its padded length, F features.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.engines import Source, find_kind, write_files
from builders.model_config import cpu_engine_config
from clients.errors import BadRequest
from clients.payload import names_wanted
from tests.model_repository.fake_backend import InferenceRequest
from tests.model_repository.loader import load_module, start_model
from tests.tiny import random_bert, tiny_config

NAMES = ["age in days", "tags"]
LENGTHS = [[3], [40, 1, 7], [12, 12], [1], [2, 39, 5, 5, 31], [16], [8, 9]]  # tokens of the rows of each request


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_numbers_follow_their_rows_into_the_groups(tmp_path: Path, kind: str) -> None:
    checkpoint = random_bert(tiny_config(num_features=2), seed=3)
    (tmp_path / "bert_engine" / "1").mkdir(parents=True)
    source = Source(checkpoint, lambda: pytest.fail("no int8 engine is written here"))
    write_files(tmp_path / "bert_engine" / "1", find_kind(kind, "fp32", frozenset()), source)
    model = start_model(load_module("bert_engine"), tmp_path / "bert_engine", cpu_engine_config(), threads="1")
    generator = np.random.default_rng(0)
    requests, expected = [], []
    for lengths in LENGTHS:
        ids = generator.integers(0, 90, (len(lengths), max(lengths)), dtype=np.int32)
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int32)
        features = generator.standard_normal((len(lengths), 2), dtype=np.float32)
        requests.append(InferenceRequest(input_ids=ids, attention_mask=mask, features=features))
        with torch.inference_mode():
            given = [torch.from_numpy(array) for array in (ids, mask, features)]
            expected.append(checkpoint(given[0], given[1], features=given[2]).numpy())
    responses = model.execute(requests)
    for response, logits in zip(responses, expected, strict=True):
        np.testing.assert_allclose(response.arrays["logits"], logits, atol=1e-4)
    bad = InferenceRequest(**{name: tensor.as_numpy() for name, tensor in requests[0].tensors.items()})
    bad.tensors["attention_mask"].as_numpy()[:] = 0
    first, second = model.execute([bad, requests[1]])  # a request that is refused takes its numbers with it
    assert first.error is not None
    np.testing.assert_allclose(second.arrays["logits"], expected[1], atol=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, f"the texts come without numbers; this release reads the features {json.dumps(NAMES)}"),
        (np.ones((2, 3)), f"3 number(s) come with each text; this release reads the features {json.dumps(NAMES)}"),
        (np.array([[1, 1], [np.nan, np.inf]]), "text 1: the feature age in days is nan; a finite number is needed"),
        (np.array([[1, -np.inf], [1, 1]]), "text 0: the feature tags is -inf; a finite number is needed"),
    ],
    ids=["none", "three", "nan", "infinite"],
)
def test_the_tokenizer_names_what_is_wrong_with_the_numbers(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        load_module("bert_tokenizer").check_features(given, NAMES)
    if json.dumps(NAMES) in said:
        assert names_wanted(BadRequest(f"host:1: {raised.value}; and more")) == NAMES
    else:
        with pytest.raises(BadRequest, match="the feature"):
            names_wanted(BadRequest(str(raised.value)))


def test_good_numbers_pass() -> None:
    load_module("bert_tokenizer").check_features(np.array([[0.0, -3.5], [1e30, 2.0]], np.float32), NAMES)
