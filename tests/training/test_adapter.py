"""`training.adapter`: what comes back from the disk, and what does not fit is refused by name. PEFT is `test_peft`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from contract.command import UsageError
from contract.files import read_json, write_json
from tests.tiny import adapted_bert, padded_batch, random_bert, randomise, tiny_config
from training.adapter import CONFIG_FILE, WEIGHTS_FILE, adapter_state, load_adapter, save_adapter
from training.bert import BertForSequenceClassification
from training.lora import lora_modules

QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The adapter of `adapted_bert()` on the disk."""
    save_adapter(adapted_bert(), tmp_path, base="a-base")
    return tmp_path


def alter_config(folder: Path, **values: Any) -> None:
    """Replace keys of the adapter's configuration."""
    write_json(folder / CONFIG_FILE, read_json(folder / CONFIG_FILE) | values)


def alter_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let `change` edit the adapter's tensors."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def logits_of(model: BertForSequenceClassification) -> Tensor:
    """Of one padded batch."""
    with torch.no_grad():
        logits: Tensor = model.eval()(*padded_batch(model.config, [9, 4, 1]))
    return logits


def test_an_adapter_comes_back_bit_for_bit_onto_its_base(folder: Path) -> None:
    model, base = adapted_bert(), random_bert(tiny_config())
    base.classifier.weight.data.zero_()  # the head has to come out of the file
    load_adapter(base, folder)
    assert base.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(logits_of(base), logits_of(model))
    assert [(m.rank, m.alpha, m.dropout.p) for _, m in lora_modules(base)] == [(4, 6.0, 0.0)] * 13


def test_a_model_with_numeric_features_keeps_its_head_and_their_statistics(tmp_path: Path) -> None:
    config = tiny_config(num_features=2)
    model, base = adapted_bert(config), random_bert(config)
    assert model.tabular is not None
    assert base.tabular is not None
    model.tabular.mean.copy_(torch.tensor([3.0, -1.0]))
    randomise(base.tabular, seed=9, std=1.0)
    save_adapter(model, tmp_path, base="a-base")
    load_adapter(base, tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in base.state_dict().items())


def test_the_file_holds_the_adapters_and_the_head_only(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    assert len(tensors) == 13 * 2 + 2
    assert tensors[f"{QUERY}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{QUERY}.lora_B.weight"].shape == (32, 4)
    assert {name for name in tensors if "lora" not in name} == {
        "base_model.model.classifier.weight",
        "base_model.model.classifier.bias",
    }


def test_the_configuration_says_all_that_peft_needs(folder: Path) -> None:
    config = read_json(folder / CONFIG_FILE)
    assert isinstance(config["lora_alpha"], int)
    assert config == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "a-base",
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [path for path, _ in lora_modules(adapted_bert())],
        "modules_to_save": ["classifier"],
    }


def test_a_model_without_adapters_has_nothing_to_save() -> None:
    with pytest.raises(ValueError, match="no LoRA adapter to save"):
        adapter_state(random_bert(tiny_config()))


def test_a_file_without_its_head_is_refused(folder: Path) -> None:
    alter_weights(folder, lambda tensors: tensors.pop("base_model.model.classifier.bias"))
    with pytest.raises(UsageError, match="lacks the classification head"):
        load_adapter(random_bert(tiny_config()), folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(f"{QUERY}.lora_A.weight"), f"{QUERY}.lora_A.weight"),
        (lambda tensors: tensors.update({f"{QUERY}.lora_B.weight": torch.zeros(32, 5)}), f"{QUERY}.lora_B.weight"),
        (lambda tensors: tensors.update({"stranger": torch.zeros(1)}), "stranger"),
    ],
    ids=["missing", "wrong shape", "foreign"],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, change: Callable[[dict[str, Tensor]], object], named: str) -> None:
    alter_weights(folder, change)
    with pytest.raises(UsageError, match=f"does not fit its adapter_config.json: {named}$"):
        load_adapter(random_bert(tiny_config()), folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"target_parameters": ["weight"]}, r"target_parameters is \['weight'\]"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication is \[\[0, 1\]\]"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base weights"),
        ({"modules_to_save": ["classifier", "pooler"]}, r"modules_to_save has \['pooler'\]"),
        ({"target_modules": ["conv"]}, r"target_modules \['conv'\] and layers None choose no linear layer"),
        ({"target_modules": ["query"], "layers_to_transform": [2]}, r"\['query'\] and layers \[2\] choose no linear layer"),
        ({"target_modules": "(query"}, "does not fit this model: missing \\), unterminated subpattern"),
        ({"target_modules": ["query"]}, "does not fit its adapter_config.json: base_model.model.bert"),
        ({"rank_pattern": {"query": 2}}, "does not fit its adapter_config.json"),
        ({"r": 0.2}, "LoRA rank is 0.2"),
        ({"lora_alpha": "much"}, "could not convert string to float: 'much'"),
        ({"r": 0}, "LoRA rank is 0"),
        ({"lora_dropout": 3}, "LoRA dropout is 3"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(folder: Path, values: dict[str, Any], named: str) -> None:
    alter_config(folder, **values)
    with pytest.raises(UsageError, match=named):
        load_adapter(random_bert(tiny_config()), folder)


def test_numbers_may_be_written_as_floats(folder: Path) -> None:
    alter_config(folder, r=4.0, lora_alpha=6.0)
    base = random_bert(tiny_config())
    load_adapter(base, folder)
    assert torch.equal(logits_of(base), logits_of(adapted_bert()))


def test_a_second_adapter_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="has LoRA adapters already"):
        load_adapter(adapted_bert(), folder)


def test_a_configuration_without_a_rank_is_refused(folder: Path) -> None:
    config = read_json(folder / CONFIG_FILE)
    del config["r"]
    write_json(folder / CONFIG_FILE, config)
    with pytest.raises(UsageError, match="does not fit this model: 'r'"):
        load_adapter(random_bert(tiny_config()), folder)


def test_broken_and_missing_files_are_named(folder: Path) -> None:
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=rf"{WEIGHTS_FILE} cannot be read"):
        load_adapter(random_bert(tiny_config()), folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UsageError, match=rf"{WEIGHTS_FILE} cannot be read"):
        load_adapter(random_bert(tiny_config()), folder)
    shutil.rmtree(folder)
    with pytest.raises(UsageError, match=rf"cannot read .*{CONFIG_FILE}"):
        load_adapter(random_bert(tiny_config()), folder)
