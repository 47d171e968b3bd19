"""Loading a model as the stub does leaves nothing behind and finds what the repository holds."""

from __future__ import annotations

import sys

import pytest

from tests.model_repository import fake_backend
from tests.model_repository.loader import SOURCE, load_module


@pytest.mark.parametrize("model", ["bert_tokenizer", "bert_engine"])
def test_the_committed_file_is_loaded_and_nothing_stays_behind(model: str) -> None:
    path = list(sys.path)
    module = load_module(model)
    assert module.__file__ == str(SOURCE / model / "1" / "model.py")
    assert module.__name__ == "1.model"
    assert module.pb_utils is fake_backend
    assert sys.path == path
    assert not {"1", "1.model", "triton_python_backend_utils"} & set(sys.modules)


def test_two_models_loaded_one_after_the_other_are_two_modules() -> None:
    tokenizer, engine = load_module("bert_tokenizer"), load_module("bert_engine")
    assert tokenizer.TritonPythonModel is not engine.TritonPythonModel
    assert hasattr(tokenizer, "decode_texts")
    assert hasattr(engine, "group_rows")
