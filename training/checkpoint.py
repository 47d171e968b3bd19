"""Checkpoint folders: what `training.finetune` and `training.merge` write, and everything later reads.

config.json          the model in Hugging Face's terms, with the label names
tokenizer.json       the tokenizer, truncating where training truncated
run.json             how it came about: configuration, seed, versions, data hashes, metrics
heldout.jsonl        the test part, never trained on: one {"text", "label"} a line
adapter_*            of a fine-tuned checkpoint (see `training.adapter`)
model.safetensors    of a merged checkpoint; transformers loads that folder as it is
merge_certificate.json   of a merged checkpoint (see `training.merge`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from contract.command import UsageError
from contract.files import read_json, read_json_lines, sha256_of, write_bytes, write_json, write_json_lines
from training.adapter import base_name, is_adapter, load_adapter
from training.bert import BertConfig, BertForSequenceClassification
from training.pretrained import WEIGHTS_FILE, find_base, load_model, load_tokenizer

RUN_FILE = "run.json"
HELDOUT_FILE = "heldout.jsonl"
CERTIFICATE_FILE = "merge_certificate.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, loaded: the model in eval mode, adapters still apart where they are not merged."""

    folder: Path
    model: BertForSequenceClassification
    tokenizer: Tokenizer
    labels: list[str]
    max_length: int
    run: dict[str, Any]

    @property
    def merged(self) -> bool:
        """Whether the folder holds plain BERT weights."""
        return not is_adapter(self.folder)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load a fine-tuned or merged checkpoint.

    Raises:
        UsageError: the folder is none, is half-written, or its base model is missing or has changed.
    """
    for name in ("config.json", "tokenizer.json", RUN_FILE):
        if not (folder / name).exists():
            raise UsageError(f"{folder} is not a checkpoint: {name} is missing; python -m training.finetune writes one")
    config, run = read_json(folder / "config.json"), read_json(folder / RUN_FILE)
    labels = read_labels(config, folder)
    try:
        max_length, base_sha256 = int(run["configuration"]["max_length"]), str(run["base"]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / RUN_FILE} is not that of a training run ({error!r}); train again") from error
    if is_adapter(folder):
        model = _load_adapted(folder, base_sha256, num_labels=len(labels))
    else:
        model, _ = load_model(folder, num_labels=len(labels), new_head=False)
    return Checkpoint(folder, model.eval(), load_tokenizer(folder, max_length=max_length), labels, max_length, run)


def _load_adapted(folder: Path, base_sha256: str, *, num_labels: int) -> BertForSequenceClassification:
    base = find_base(base_name(folder))
    if not (base / WEIGHTS_FILE).exists():
        raise UsageError(f"{base / WEIGHTS_FILE} is missing, on which {folder} was trained; restore that base, or train again")
    digest = sha256_of(base / WEIGHTS_FILE)
    if digest != base_sha256:
        raise UsageError(
            f"the base {base} has sha256 {digest}, but {folder} was trained on {base_sha256}; restore that base, or train again"
        )
    model, _ = load_model(base, num_labels=num_labels, new_head=True)
    load_adapter(model, folder)
    return model


def read_labels(config: dict[str, Any], folder: Path) -> list[str]:
    """Class names in the order of the logits, out of a Hugging Face config's `id2label`."""
    names = config.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(number) for number in range(len(names))}:
        raise UsageError(f"{folder / 'config.json'} has no id2label from 0 up; the labels are unknown")
    return [str(names[str(number)]) for number in range(len(names))]


def write_common(
    folder: Path,
    *,
    config: BertConfig,
    labels: list[str],
    tokenizer_json: str,
    run: dict[str, Any],
    heldout: Iterable[dict[str, str]],
) -> None:
    """Write what every checkpoint has, whatever its weights."""
    values = dataclasses.asdict(config)
    del values["num_labels"]
    write_json(
        folder / "config.json",
        {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "hidden_act": "gelu",
            **values,
            "id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)},
        },
    )
    write_bytes(folder / "tokenizer.json", tokenizer_json.encode())
    write_tokenizer_config(folder, run)
    write_json(folder / RUN_FILE, run)
    write_json_lines(folder / HELDOUT_FILE, heldout)


def write_tokenizer_config(folder: Path, run: dict[str, Any]) -> None:
    """The file by which transformers' AutoTokenizer recognises `tokenizer.json`."""
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": run["configuration"]["max_length"]}
    write_json(folder / "tokenizer_config.json", values | special)


def read_heldout(folder: Path) -> Iterator[dict[str, str]]:
    """The held-out rows of a checkpoint: {"text", "label"}."""
    return read_json_lines(folder / HELDOUT_FILE)


def heldout_texts(folder: Path, limit: int) -> list[str]:
    """The first `limit` held-out texts, on which merge and build prove their work. Raises `UsageError` when there are none."""
    texts = [row["text"] for row in islice(read_heldout(folder), limit)]
    if not texts:
        raise UsageError(f"{folder / HELDOUT_FILE} holds no texts to compare the logits on; train and merge again")
    return texts
