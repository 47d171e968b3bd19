"""What several tests of `bert_engine/1/model.py` need."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model_repository.loader import load_module
from tests.tiny import random_bert, tiny_config
from training.bert import BertForSequenceClassification


@pytest.fixture(scope="module")
def module() -> Any:
    return load_module("bert_engine")


@pytest.fixture(scope="module")
def checkpoint() -> BertForSequenceClassification:
    """With the config of `tiny_config`."""
    return random_bert(tiny_config(), seed=3)
