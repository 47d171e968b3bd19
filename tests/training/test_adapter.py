"""`training.adapter`: what we write PEFT loads, what PEFT writes we load, and what does not fit is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from contract.command import UsageError
from contract.files import read_json, write_json
from tests.tiny import adapted_bert, padded_batch, random_bert, tiny_config, transformers_twin
from training.adapter import CONFIG_FILE, WEIGHTS_FILE, adapter_state, load_adapter, save_adapter
from training.bert import BertForSequenceClassification
from training.lora import lora_modules

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}
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


@pytest.mark.parametrize(
    "options", [{}, {"targets": ["key", "output.dense"], "layers": [1], "rank": 2, "alpha": 1.0, "dropout": 0.25}]
)
def test_peft_loads_our_folder_with_equal_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapted_bert(**options)
    save_adapter(model, tmp_path, base="a-base")
    base = random_bert(tiny_config())
    base.classifier.weight.data.zero_()
    twin = peft.PeftModel.from_pretrained(transformers_twin(base), tmp_path).eval()
    ids, mask = padded_batch(model.config, [9, 4, 1])
    with torch.no_grad():
        expected = twin(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits_of(model), expected, **TOLERANCE)
    assert sorted(twin.targeted_module_names) == sorted(path for path, _ in lora_modules(model))
    assert twin.peft_config["default"].lora_dropout == options.get("dropout", 0.0)


def test_we_load_what_peft_writes_with_equal_logits(tmp_path: Path) -> None:
    base = random_bert(tiny_config())
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=7.0, target_modules=["query", "value"], init_lora_weights=False
    )
    twin = peft.get_peft_model(transformers_twin(base), config).eval()
    twin.save_pretrained(tmp_path)
    ids, mask = padded_batch(base.config, [9, 4, 1])
    with torch.no_grad():
        expected = twin(input_ids=ids, attention_mask=mask).logits
    before = logits_of(base)
    load_adapter(base, tmp_path)
    assert not torch.allclose(before, expected, atol=0.05), "the adapters moved nothing"
    torch.testing.assert_close(logits_of(base), expected, **TOLERANCE)


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
    assert read_json(folder / CONFIG_FILE) == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "a-base",
        "r": 4,
        "lora_alpha": 6.0,
        "lora_dropout": 0.0,
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
        ({"use_rslora": True}, "use_rslora is True"),
        ({"alpha_pattern": {"query": 32}}, "alpha_pattern is {'query': 32}"),
        ({"target_modules": "all-linear"}, "targets is the string 'all-linear'"),
        ({"target_modules": ["conv"]}, "'conv' fits no linear layer"),
        ({"rank_pattern": {"query": 2}, "r": 5}, "does not fit its adapter_config.json"),
        ({"r": 0}, "LoRA rank is 0"),
        ({"lora_dropout": 3}, "LoRA dropout is 3"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused(folder: Path, values: dict[str, Any], named: str) -> None:
    alter_config(folder, **values)
    with pytest.raises(UsageError, match=named):
        load_adapter(random_bert(tiny_config()), folder)


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
