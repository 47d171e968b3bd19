"""Merge a LoRA checkpoint into plain BERT weights, and certify that nothing changed.

    python -m training.merge build/finetuned --output build/merged

W' = W + (alpha / r) B A, in fp32, in a copy. The merged folder holds `merge_certificate.json` and loads in transformers
as it is. When the certificate fails, no folder is written: the certificate goes to OUTPUT.rejected.json, exit code 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from safetensors.torch import save

from contract.command import Failure, UsageError, run_command
from contract.files import new_folder, sha256_of, write_bytes, write_json
from training.adapter import WEIGHTS_FILE as ADAPTER_FILE
from training.batches import encode
from training.bert import BertForSequenceClassification
from training.certificate import Certificate, certify
from training.checkpoint import CERTIFICATE_FILE, Checkpoint, heldout_texts, load_checkpoint, read_heldout, write_common
from training.lora import HEAD, lora_modules
from training.pretrained import WEIGHTS_FILE, load_model


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge a LoRA checkpoint into plain BERT weights, and certify that nothing changed."""

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
    if not hasattr(model, HEAD):
        raise ValueError(f"the model has no head {HEAD!r}; a classifier cannot be served without it")
    merged = copy.deepcopy(model)
    for path, module in list(lora_modules(merged)):
        update = module.scaling * (module.lora_B.float() @ module.lora_A.float())
        module.base.weight.copy_(module.base.weight.float() + update)
        merged.set_submodule(path, module.base)
    broken = [name for name, tensor in merged.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"values that are not finite in {', '.join(broken[:5])}; the training diverged or the file is damaged")
    return merged


def merge_checkpoint(checkpoint: Checkpoint, output: Path, probe_texts: Sequence[str]) -> Certificate:
    """Write the merged folder, read it back, and certify what was read.

    Raises:
        UsageError: a merged checkpoint, or an output that exists.
        Failure: values that are not finite, or a certificate that does not pass; then no folder is left.
    """
    if checkpoint.merged:
        raise UsageError(f"{checkpoint.folder} has no adapter: it is merged already. Merge a folder of training.finetune")
    try:
        merged = merge_lora(checkpoint.model)
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
        tensors = {name: tensor.contiguous() for name, tensor in merged.state_dict().items()}
        write_bytes(folder / WEIGHTS_FILE, save(tensors, {"format": "pt"}))
        certificate = _certify_folder(checkpoint, folder, probe_texts)
        if certificate.failures:
            rejected = output.with_name(output.name + ".rejected.json")
            write_json(rejected, certificate.to_json())
            raise Failure(f"the merge certificate does not pass (see {rejected}):\n  " + "\n  ".join(certificate.failures))
        write_json(folder / CERTIFICATE_FILE, certificate.to_json())
    return certificate


def _certify_folder(checkpoint: Checkpoint, folder: Path, probe_texts: Sequence[str]) -> Certificate:
    merged, _ = load_model(folder, num_labels=len(checkpoint.labels), new_head=False)
    probe = encode(checkpoint.tokenizer, probe_texts, [])
    hashes = {
        "base": checkpoint.run["base"]["sha256"],
        "adapter": sha256_of(checkpoint.folder / ADAPTER_FILE),
        "merged": sha256_of(folder / WEIGHTS_FILE),
    }
    return certify(checkpoint.model, merged.eval(), probe, hashes)


def main(options: Merge) -> None:
    """Merge, and print what was measured."""
    checkpoint = load_checkpoint(options.checkpoint)
    texts = heldout_texts(options.checkpoint, options.probe_texts)
    certificate = merge_checkpoint(checkpoint, options.output, texts)
    worst = max(certificate.modules.values(), key=lambda module: module.max_abs_error / module.bound)
    print(
        f"merged {len(certificate.modules)} modules; worst weight error {worst.max_abs_error:.2g} (allowed {worst.bound:.2g})"
    )
    for name, delta in (("fp32", certificate.fp32), ("bf16", certificate.bf16)):
        print(
            f"{name} logits on {certificate.probe_texts} held-out texts: max difference {delta.max_abs:.2g}, "
            f"labels agree on {delta.label_agreement:.2%}"
        )
    print(f"certificate passed (fp32 bound {certificate.logit_bound:g}); wrote {options.output}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Merge, prog="python -m training.merge", description=__doc__)))
