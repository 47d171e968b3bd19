"""`training.adapter` against PEFT: what we write PEFT loads, what PEFT trained we load and merge, logits equal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contract.files import read_json, write_json
from tests.tiny import adapted_bert, padded_batch, random_bert, random_encoded, tiny_config, transformers_twin
from training.adapter import CONFIG_FILE, load_adapter, save_adapter
from training.bert import BertForSequenceClassification
from training.certificate import certify
from training.checkpoint import CERTIFICATE_FILE
from training.lora import lora_modules
from training.merge import Merge, merge_lora
from training.merge import main as merge
from training.pretrained import load_model

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


def logits_of(model: BertForSequenceClassification) -> Tensor:
    """Of one padded batch."""
    with torch.no_grad():
        logits: Tensor = model.eval()(*padded_batch(model.config, [9, 4, 1]))
    return logits


def peft_trained(base: BertForSequenceClassification, folder: Path, **options: Any) -> Any:
    """transformers' twin of `base` with PEFT's adapters, trained a few steps on random tokens and saved into `folder`."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**({"task_type": "SEQ_CLS", "r": 3, "lora_alpha": 7} | options))
    twin = peft.get_peft_model(transformers_twin(base), config).train()
    ids, mask = padded_batch(base.config, [9, 4, 7], seed=1)
    optimizer = torch.optim.AdamW((parameter for parameter in twin.parameters() if parameter.requires_grad), lr=0.05)
    for _ in range(4):
        loss = F.cross_entropy(twin(input_ids=ids, attention_mask=mask).logits, torch.arange(3) % base.config.num_labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    twin.save_pretrained(folder)
    return twin.eval()


def twin_logits(twin: Any, base: BertForSequenceClassification) -> Tensor:
    """Of the batch of `logits_of`."""
    ids, mask = padded_batch(base.config, [9, 4, 1])
    with torch.no_grad():
        logits: Tensor = twin(input_ids=ids, attention_mask=mask).logits
    return logits


OURS: list[dict[str, Any]] = [
    {},
    {"targets": ["key", "output.dense"], "layers": [1], "rank": 2, "alpha": 1.0, "dropout": 0.25},
    {"rslora": True, "rank": 4, "alpha": 3.0},
    {"targets": ["query"], "alpha": 2.5},
]


@pytest.mark.parametrize("options", OURS, ids=["all", "one layer", "rslora", "broken alpha"])
def test_peft_loads_our_folder_with_equal_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapted_bert(**options)
    save_adapter(model, tmp_path, base="a-base")
    base = random_bert(tiny_config())
    base.classifier.weight.data.zero_()
    twin = peft.PeftModel.from_pretrained(transformers_twin(base), tmp_path).eval()
    torch.testing.assert_close(logits_of(model), twin_logits(twin, base), **TOLERANCE)
    assert sorted(twin.targeted_module_names) == sorted(path for path, _ in lora_modules(model))
    assert twin.peft_config["default"].lora_dropout == options.get("dropout", 0.0)


THEIRS: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["query", "value"]},
    "regular expression": {"target_modules": r".*\.layer\.[01]\.(attention\.self\.query|output\.dense)"},
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["query", "key"], "use_rslora": True, "r": 5},
    "one layer": {"target_modules": ["query", "dense"], "layers_to_transform": 1, "layers_pattern": "layer"},
    "layers": {"target_modules": ["value"], "layers_to_transform": [0, 1]},
    "rank pattern": {
        "target_modules": ["query", "value", "intermediate.dense"],
        "rank_pattern": {"value": 6, r"layer\.1\.attention\.self\.query": 1},
        "alpha_pattern": {r".*\.0\..*\.query": 20, "dense": 2.5},
    },
    "excluded": {"target_modules": ["query", "dense"], "exclude_modules": ["pooler.dense"]},
    "head by name": {"target_modules": ["value"], "task_type": None, "modules_to_save": ["classifier"]},
    "orthogonal start": {"target_modules": ["value"], "init_lora_weights": "orthogonal", "r": 4},
}


@pytest.mark.parametrize("options", THEIRS.values(), ids=THEIRS)
def test_what_peft_trained_loads_and_merges_with_equal_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    base = random_bert(tiny_config())
    twin = peft_trained(base, tmp_path, **options)
    expected, before = twin_logits(twin, base), logits_of(base)
    base.classifier.weight.data.zero_()  # the head has to come out of the file
    load_adapter(base, tmp_path)
    assert sorted(path for path, _ in lora_modules(base)) == sorted(twin.targeted_module_names)
    assert all(module.lora_B.abs().max() > 0 for _, module in lora_modules(base)), "the training moved nothing"
    assert not torch.allclose(before, expected, atol=0.05)
    torch.testing.assert_close(logits_of(base), expected, **TOLERANCE)

    certificate = certify(base, merge_lora(base), random_encoded(20, base.config), {})
    assert certificate.failures == []
    assert max(module.max_abs_update for module in certificate.modules.values()) > 0.01


@pytest.mark.parametrize("options", THEIRS.values(), ids=THEIRS)
def test_an_adapter_keeps_its_meaning_from_peft_through_us_to_peft(tmp_path: Path, options: dict[str, Any]) -> None:
    base = random_bert(tiny_config())
    expected = twin_logits(peft_trained(base, tmp_path / "theirs", **options), base)
    load_adapter(base, tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_adapter(base, tmp_path / "ours", base="a-base")
    twin = peft.PeftModel.from_pretrained(transformers_twin(random_bert(tiny_config())), tmp_path / "ours").eval()
    torch.testing.assert_close(twin_logits(twin, base), expected, **TOLERANCE)


def test_a_checkpoint_whose_adapter_peft_trained_goes_through_the_merge_command(
    tmp_path: Path, finetuned: Path, tiny_base: Path
) -> None:
    base, _ = load_model(tiny_base, num_labels=2, new_head=True)
    shutil.copytree(finetuned, tmp_path / "checkpoint")
    peft_trained(base, tmp_path / "checkpoint", target_modules=["query", "dense"], use_rslora=True)
    path = tmp_path / "checkpoint" / CONFIG_FILE
    write_json(path, read_json(path) | {"base_model_name_or_path": str(tiny_base)})  # PEFT knows no folder of the twin
    merge(Merge(checkpoint=tmp_path / "checkpoint", output=tmp_path / "merged"))
    certificate = read_json(tmp_path / "merged" / CERTIFICATE_FILE)
    assert certificate["passed"]
    assert len(certificate["modules"]) == 2 * 4 + 1


@pytest.mark.parametrize("dropout", [0.0, 0.125])
def test_peft_reads_the_alpha_and_dropout_of_every_linear_layer(tmp_path: Path, dropout: float) -> None:
    """A published implementation swapped the two at every second level of its recursion."""
    save_adapter(adapted_bert(rank=2, alpha=32.0, dropout=dropout), tmp_path, base="a-base")
    twin = peft.PeftModel.from_pretrained(transformers_twin(random_bert(tiny_config())), tmp_path)
    layers = [module for module in twin.modules() if isinstance(module, peft.tuners.lora.Linear)]
    assert len(layers) == tiny_config().num_hidden_layers * 6 + 1
    assert {module.scaling["default"] for module in layers} == {16.0}
    assert {getattr(module.lora_dropout["default"], "p", 0.0) for module in layers} == {dropout}
    model = random_bert(tiny_config())
    load_adapter(model, tmp_path)
    assert {(module.rank, module.alpha, module.dropout.p) for _, module in lora_modules(model)} == {(2, 32.0, dropout)}
