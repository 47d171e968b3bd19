"""Merge a checkpoint into plain BERT weights, and certify that nothing changed.

    python -m training.merge build/finetuned --output build/merged

W' = W + (alpha / r) B A, in fp32, in a copy; what was trained without LoRA is copied, and certified all the same. The
merged folder holds `merge_certificate.json` and loads in transformers as it is. When the certificate fails, no folder is
written: the certificate goes to OUTPUT.rejected.json, exit code 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from contract.command import Failure, UsageError, run_command
from contract.files import new_folder, sha256_of, write_json
from training.adapter import WEIGHTS_FILE as ADAPTER_FILE
from training.adapter import is_adapter
from training.bert import BertForSequenceClassification
from training.certificate import Certificate, certify
from training.checkpoint import (
    CERTIFICATE_FILE,
    Checkpoint,
    heldout_rows,
    load_checkpoint,
    read_heldout,
    write_common,
    write_weights,
)
from training.lora import head_name, lora_modules
from training.pretrained import WEIGHTS_FILE, load_model


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge a checkpoint into plain BERT weights, and certify that nothing changed."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint folder of training.finetune."""
    output: Path
    """Folder to write; it must not exist."""
    probe_texts: int = 256
    """Held-out texts on which the logits are compared, at least 1."""

    def __post_init__(self) -> None:
        if self.probe_texts < 1:
            raise UsageError(f"--probe-texts is {self.probe_texts}; it must be at least 1")


@torch.no_grad()
def merge_lora(model: BertForSequenceClassification) -> BertForSequenceClassification:
    """A copy of `model` in which every adapter is folded into its weight; `model` stays as it was.

    Raises:
        ValueError: no adapters (merged already, or never adapted), no head, or values that are not finite.
    """
    if next(lora_modules(model), None) is None:
        raise ValueError("the model has no LoRA adapters: it was merged already, or never adapted")
    head_name(model)  # raises where there is none
    merged = copy.deepcopy(model)
    for path, module in list(lora_modules(merged)):
        update = module.scaling * (module.lora_B.float() @ module.lora_A.float())
        module.base.weight.copy_(module.base.weight.float() + update)
        merged.set_submodule(path, module.base)
    check_finite(merged)
    return merged


def check_finite(model: BertForSequenceClassification) -> None:
    """Raise ValueError when a tensor of the model holds NaN or infinity."""
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"values that are not finite in {', '.join(broken[:5])}; the training diverged or the file is damaged")


def merge_checkpoint(checkpoint: Checkpoint, output: Path, probe: Sequence[dict[str, Any]]) -> Certificate:
    """Write the merged folder, read it back, and certify what was read.

    Raises:
        UsageError: a merged checkpoint, or an output that exists.
        Failure: values that are not finite, or a certificate that does not pass; then no folder is left.
    """
    if checkpoint.merged:
        raise UsageError(f"{checkpoint.folder} is merged already. Merge a folder of training.finetune")
    try:
        if is_adapter(checkpoint.folder):
            merged = merge_lora(checkpoint.model)
        else:
            merged = checkpoint.model
            check_finite(merged)
    except ValueError as error:
        raise Failure(str(error)) from error
    with new_folder(output) as folder:
        write_common(
            folder,
            config=merged.config,
            labels=checkpoint.labels,
            tokenizer_json=checkpoint.tokenizer.to_str(),
            run=checkpoint.run,
            heldout=read_heldout(checkpoint.folder),
        )
        write_weights(folder, merged)
        return certify_folder(checkpoint, folder, probe, rejected=output.with_name(output.name + ".rejected.json"))


def certify_folder(checkpoint: Checkpoint, folder: Path, probe: Sequence[dict[str, Any]], *, rejected: Path) -> Certificate:
    """Read the weights of `folder` back, and write the certificate that they are those of `checkpoint`.

    Raises:
        Failure: they are not; the certificate then lies in the file `rejected`.
    """
    certificate = _compare_folder(checkpoint, folder, probe)
    if certificate.failures:
        write_json(rejected, certificate.to_json())
        raise Failure(f"the merge certificate does not pass (see {rejected}):\n  " + "\n  ".join(certificate.failures))
    write_json(folder / CERTIFICATE_FILE, certificate.to_json())
    return certificate


def _compare_folder(checkpoint: Checkpoint, folder: Path, probe: Sequence[dict[str, Any]]) -> Certificate:
    merged, _ = load_model(folder, num_labels=len(checkpoint.labels), new_head=False)
    trained = ADAPTER_FILE if is_adapter(checkpoint.folder) else WEIGHTS_FILE
    hashes = {
        "base": checkpoint.run["base"]["sha256"],
        "trained": sha256_of(checkpoint.folder / trained),
        "merged": sha256_of(folder / WEIGHTS_FILE),
    }
    return certify(checkpoint.model, merged.eval(), checkpoint.encode(probe), hashes)


def main(options: Merge) -> None:
    """Merge, and print what was measured."""
    checkpoint = load_checkpoint(options.checkpoint)
    certificate = merge_checkpoint(checkpoint, options.output, heldout_rows(options.checkpoint, options.probe_texts))
    if certificate.modules:
        worst = max(certificate.modules.values(), key=lambda module: module.max_abs_error / module.bound)
        print(
            f"merged {len(certificate.modules)} modules; worst weight error {worst.max_abs_error:.2g} "
            f"(allowed {worst.bound:.2g})"
        )
    else:
        print("no adapter to merge: every tensor is the trained one, bit for bit")
    for name, delta in (("fp32", certificate.fp32), ("bf16", certificate.bf16)):
        print(
            f"{name} logits on {certificate.probe_texts} held-out texts: max difference {delta.max_abs:.2g}, "
            f"labels agree on {delta.label_agreement:.2%}"
        )
    print(f"certificate passed (fp32 bound {certificate.logit_bound:g}); wrote {options.output}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Merge, prog="python -m training.merge", description=__doc__)))
