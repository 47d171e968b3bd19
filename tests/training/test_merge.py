"""`training.merge` and `training.certificate`: an honest merge passes, one altered value does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import training.merge
from contract.command import Failure, UsageError, run_command
from contract.files import read_json, sha256_of
from tests.tiny import adapted_bert, padded_batch, random_bert, random_encoded, tiny_config
from training.bert import BertForSequenceClassification
from training.certificate import Certificate, certify, original_tensors
from training.checkpoint import load_checkpoint, read_heldout
from training.lora import lora_modules
from training.merge import Merge, merge_checkpoint, merge_lora
from training.pretrained import load_model

TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}
QUERY = "bert.encoder.layer.1.attention.self.query"
PARTS = {
    "adapted weight": f"{QUERY}.weight",
    "bias of an adapted layer": f"{QUERY}.bias",
    "LayerNorm weight": "bert.encoder.layer.0.output.LayerNorm.weight",
    "LayerNorm bias": "bert.embeddings.LayerNorm.bias",
    "embedding": "bert.embeddings.word_embeddings.weight",
    "plain weight": "bert.encoder.layer.0.attention.self.value.weight",
    "head": "classifier.weight",
}


def adapted() -> BertForSequenceClassification:
    """Adapters on some layers only, so that there are plain weights too."""
    return adapted_bert(targets=["query", "intermediate.dense"], rank=3, alpha=5.0)


def certificate_of(model: BertForSequenceClassification, merged: BertForSequenceClassification) -> Certificate:
    """Certify on 20 random texts."""
    return certify(model, merged, random_encoded(20, model.config), {})


@torch.no_grad()
def test_merged_logits_equal_adapted_logits() -> None:
    model = adapted_bert()
    ids, mask = padded_batch(model.config, [9, 4, 1])
    merged = merge_lora(model)
    assert not list(lora_modules(merged))
    torch.testing.assert_close(merged(ids, mask), model(ids, mask), **TOLERANCE)


def test_merged_weights_are_w_plus_scaled_b_a() -> None:
    model = adapted()
    merged = merge_lora(model).state_dict()
    for path, module in lora_modules(model):
        update = 5.0 / 3 * (module.lora_B.double() @ module.lora_A.double())
        torch.testing.assert_close(merged[f"{path}.weight"].double(), module.base.weight + update, atol=1e-6, rtol=0.0)


def test_the_merged_model_is_plain_bert_and_shares_nothing_with_the_original() -> None:
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merge_lora(model)
    assert merged.state_dict().keys() == random_bert(model.config).state_dict().keys()
    for parameter in merged.parameters():
        parameter.data.fill_(7.0)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merging_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="no LoRA adapters: it was merged already, or never adapted"):
        merge_lora(merge_lora(adapted()))


def test_a_model_without_a_head_is_refused() -> None:
    model = adapted()
    del model.classifier
    with pytest.raises(ValueError, match="the model has no head 'classifier'"):
        merge_lora(model)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["bert.pooler.dense.bias", f"{QUERY}.lora_A", f"{QUERY}.base.weight"])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    model = adapted()
    model.get_parameter(name).data.view(-1)[3] = value
    with pytest.raises(ValueError, match=rf"not finite in {name.replace('lora_A', 'weight').replace('base.', '')}"):
        merge_lora(model)


def test_the_certificate_passes_an_honest_merge_and_says_what_it_measured() -> None:
    model = adapted()
    certificate = certificate_of(model, merge_lora(model))
    assert certificate.failures == []
    assert list(certificate.modules) == [path for path, _ in lora_modules(model)]
    assert certificate.probe_texts == 20
    assert certificate.fp32.label_agreement == 1.0
    assert 0 <= certificate.fp32.mean_abs <= certificate.fp32.max_abs <= 1e-5
    assert certificate.bf16.max_abs > certificate.fp32.max_abs
    for path, module in lora_modules(model):
        update = (module.scaling * module.lora_B @ module.lora_A).abs().max().item()
        assert certificate.modules[path].max_abs_update == pytest.approx(update, rel=1e-5)
        assert certificate.modules[path].bound < 1e-4 * update, "a bound that lets a part of the update through"
    assert json.loads(json.dumps(certificate.to_json()))["passed"] is True


@pytest.mark.parametrize("name", PARTS.values(), ids=PARTS.keys())
def test_one_value_altered_by_a_little_is_caught_and_named(name: str) -> None:
    """By 1e-5, which the logits do not always show; the middle value, as nothing special."""
    model = adapted()
    merged = merge_lora(model)
    flat = merged.get_parameter(name).data.view(-1)
    flat[flat.numel() // 2] += 1e-5
    failures = certificate_of(model, merged).failures
    assert [failure for failure in failures if failure.startswith(name.removesuffix(".weight"))], failures


@pytest.mark.parametrize("name", [name for part, name in PARTS.items() if part != "adapted weight"])
def test_outside_the_adapted_weights_a_single_bit_is_caught(name: str) -> None:
    model = adapted()
    merged = merge_lora(model)
    flat = merged.get_parameter(name).data.view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(math.inf))
    assert certificate_of(model, merged).changed == [name]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_certificate_of_values_that_are_not_finite_does_not_pass(value: float) -> None:
    model = adapted()
    merged = merge_lora(model)
    merged.get_parameter(f"{QUERY}.weight").data[0, 0] = value
    failures = certificate_of(model, merged).failures
    assert any(failure.startswith(QUERY) for failure in failures)


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda module: module.lora_B.data.zero_(), id="no update"),
        pytest.param(lambda module: module.lora_B.data.mul_(2), id="scaled twice"),
        pytest.param(lambda module: module.lora_B.data.mul_(-1), id="subtracted"),
    ],
)
def test_a_wrong_formula_is_caught_by_weights_and_by_logits(forge: Callable[[torch.nn.Module], Tensor]) -> None:
    model, forged = adapted(), adapted()
    for _, module in lora_modules(forged):
        forge(module)
    certificate = certificate_of(model, merge_lora(forged))
    assert sum("max |W' - (W + sBA)|" in failure for failure in certificate.failures) == len(certificate.modules)
    assert any(failure.startswith("fp32 logits differ") for failure in certificate.failures)


def test_original_tensors_are_all_of_bert_but_the_adapted_weights() -> None:
    model = adapted()
    weights = {f"{path}.weight" for path, _ in lora_modules(model)}
    assert original_tensors(model).keys() == random_bert(model.config).state_dict().keys() - weights


def test_the_merge_command_writes_a_folder_with_a_certificate_that_passed(finetuned: Path, merged: Path) -> None:
    certificate = read_json(merged / "merge_certificate.json")
    assert certificate["passed"] is True
    assert certificate["failures"] == []
    assert certificate["hashes"] == {
        "base": read_json(finetuned / "run.json")["base"]["sha256"],
        "trained": sha256_of(finetuned / "adapter_model.safetensors"),
        "merged": sha256_of(merged / "model.safetensors"),
    }
    assert certificate["probe_texts"] == len(list(read_heldout(finetuned)))
    for name in ("tokenizer.json", "heldout.jsonl", "run.json"):
        assert (merged / name).read_bytes() == (finetuned / name).read_bytes()
    assert not list(merged.glob("adapter*"))


@torch.no_grad()
def test_transformers_loads_the_merged_folder_key_for_key_with_equal_logits(merged: Path) -> None:
    twin, report = AutoModelForSequenceClassification.from_pretrained(merged, output_loading_info=True)
    assert {name: sorted(keys) for name, keys in report.items() if keys} == {}
    assert twin.config.id2label == {0: "animal", 1: "plant"}
    assert twin.config.label2id == {"animal": 0, "plant": 1}
    checkpoint = load_checkpoint(merged)
    ids, mask = padded_batch(checkpoint.model.config, [16, 7, 1])
    expected = twin.eval()(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(checkpoint.model(ids, mask), expected, **TOLERANCE)


def test_the_probe_is_as_large_as_asked_for(finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.merge.main(Merge(checkpoint=finetuned, output=tmp_path / "new", probe_texts=3))
    assert read_json(tmp_path / "new" / "merge_certificate.json")["probe_texts"] == 3
    assert "certificate passed" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--probe-texts is 0"):
        Merge(checkpoint=finetuned, output=tmp_path / "other", probe_texts=0)


def test_a_certificate_that_fails_leaves_its_report_and_no_folder_and_exit_code_1(
    finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merge is patched because the real one is right: only a wrong one can show that the certificate is heeded."""

    def wrong(model: BertForSequenceClassification) -> BertForSequenceClassification:
        merged = merge_lora(model)
        merged.get_parameter(f"{QUERY}.weight").data[0, 0] += 1e-4
        return merged

    monkeypatch.setattr(training.merge, "merge_lora", wrong)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: training.merge.main(Merge(checkpoint=finetuned, output=tmp_path / "merged")))
    assert stop.value.code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["merged.rejected.json"]
    rejected = read_json(tmp_path / "merged.rejected.json")
    assert rejected["passed"] is False
    assert rejected["failures"][0].startswith(QUERY)
    assert rejected["failures"][0] in capsys.readouterr().err


def test_a_checkpoint_with_values_that_are_not_finite_fails_and_leaves_nothing(finetuned: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(finetuned)
    checkpoint.model.classifier.bias.data[0] = math.nan
    with pytest.raises(Failure, match=r"not finite in classifier\.bias"):
        merge_checkpoint(checkpoint, tmp_path / "merged", [{"text": "a text"}])
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_with_exit_code_2(finetuned: Path, merged: Path) -> None:
    before = sha256_of(merged / "model.safetensors")
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: training.merge.main(Merge(checkpoint=finetuned, output=merged)))
    assert stop.value.code == 2
    assert sha256_of(merged / "model.safetensors") == before


def test_a_merged_checkpoint_is_refused_with_exit_code_2(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: training.merge.main(Merge(checkpoint=merged, output=tmp_path / "twice")))
    assert stop.value.code == 2
    assert "is merged already. Merge a folder of training.finetune" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_certified_tensors_are_those_on_the_disk(merged: Path, finetuned: Path) -> None:
    written = load_file(merged / "model.safetensors")
    expected = merge_lora(load_checkpoint(finetuned).model).state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    model, report = load_model(merged, num_labels=2, new_head=False)
    assert (report.initialised, report.ignored) == ([], [])
    assert model.config == tiny_config(vocab_size=model.config.vocab_size, num_labels=2)
