"""`training.prefix`: training from cached hidden states is training from the texts, without the frozen layers' work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from contract.command import UsageError
from contract.files import read_json
from tests.tiny import random_bert, random_encoded, tiny_config
from tests.training.tiny_runs import options
from training.batches import collate
from training.bert import BertForSequenceClassification, BertLayer
from training.finetune import finetune
from training.loop import EpochResult, Plan, Training
from training.prefix import PrefixCache
from training.strategies import apply_strategy

CONFIG = tiny_config(num_hidden_layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
DATA = random_encoded(40, CONFIG)
PLAN = Plan(epochs=2, learning_rate=3e-3, weight_decay=0.01, warmup_share=0.1, tokens_per_batch=64, dtype=torch.float32, seed=0)


def last(k: int) -> BertForSequenceClassification:
    model = random_bert(CONFIG)
    apply_strategy(model, "last", k=k)
    return model


def cache_of(
    model: BertForSequenceClassification, path: Path, *, layers: int, dtype: torch.dtype = torch.float32
) -> PrefixCache:
    return PrefixCache(model, DATA, path, layers=layers, tokens_per_batch=64, dtype=dtype)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_the_cached_states_are_those_of_the_layers_and_zero_in_padded_places(tmp_path: Path, layers: int) -> None:
    model = last(1)
    cache = cache_of(model, tmp_path / "prefix", layers=layers)
    for rows in ([3, 17, 5], [39], [0, 39, 1, 2]):
        batch = collate(DATA, rows, pad_token_id=0)
        found = cache.read(batch)
        for place, row in enumerate(rows):
            length = len(DATA.ids[row])
            expected = model.bert.prefix(torch.tensor([DATA.ids[row]]), None, layers)[0]
            torch.testing.assert_close(found[place, :length], expected, atol=1e-5, rtol=0.0)
            assert not found[place, length:].any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_training_from_the_cache_gives_the_losses_and_weights_of_training_from_the_texts(tmp_path: Path, k: int) -> None:
    results: list[list[EpochResult]] = []
    models = [last(k), last(k)]
    for model, cached in zip(models, (False, True), strict=True):
        cache = cache_of(model, tmp_path / "prefix", layers=4 - k) if cached else None
        results.append(Training(model, DATA, DATA, PLAN, cache=cache).fit(lambda result: None))
    for plain, other in zip(*results, strict=True):
        assert other.train_loss == pytest.approx(plain.train_loss, abs=1e-4)
        assert other.validation.loss == pytest.approx(plain.validation.loss, abs=1e-4)
    assert results[0][1].train_loss < results[0][0].train_loss


def test_the_frozen_layers_do_not_run_while_the_rest_trains(tmp_path: Path) -> None:
    model = last(1)
    cache = cache_of(model, tmp_path / "prefix", layers=3)
    seen: list[int] = []
    for number, layer in enumerate(model.bert.encoder.layer):
        assert isinstance(layer, BertLayer)
        layer.register_forward_hook(lambda module, *_, number=number: seen.append(number) if module.training else None)
    Training(model, DATA, DATA, PLAN, cache=cache).fit(lambda result: None)
    assert set(seen) == {3}


def test_the_file_has_the_promised_size(tmp_path: Path) -> None:
    cache_of(last(1), tmp_path / "prefix", layers=3, dtype=torch.bfloat16)
    assert (tmp_path / "prefix").stat().st_size == sum(DATA.lengths) * CONFIG.hidden_size * 2


@pytest.mark.parametrize(
    "changes",
    [{"strategy": "full"}, {"strategy": "first"}, {"strategy": "last", "k": 2}, {}, {"layers": (0,)}, {"strategy": "masked"}],
    ids=["full", "first", "all layers", "lora", "lora on the first layer", "masked"],
)
def test_a_model_with_nothing_frozen_below_is_refused(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"--cache-prefix needs a frozen layer below .*; the model has 0 such layers"):
        finetune(options(tmp_path / "new", tiny_csv, tiny_base, cache_prefix=True, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes", [{"strategy": "last"}, {"strategy": "head"}, {"layers": (1,)}], ids=["last", "head", "lora"]
)
def test_the_command_trains_alike_with_and_without_and_leaves_no_cache_behind(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    for name, cached in (("plain", False), ("cached", True)):
        finetune(options(tmp_path / name, tiny_csv, tiny_base, cache_prefix=cached, learning_rate=1e-3, **changes))
    plain, cached_run = (read_json(tmp_path / name / "run.json") for name in ("plain", "cached"))
    assert len(plain["epochs"]) == 4
    for one, other in zip(plain["epochs"], cached_run["epochs"], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cached", "plain"]
    assert not list((tmp_path / "cached").glob("prefix*"))
