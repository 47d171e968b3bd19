"""Checkpoint folders: what `training.finetune` and `training.merge` write, and everything later reads.

config.json          the model in Hugging Face's terms, with the label names
tokenizer.json       the tokenizer, truncating where training truncated
run.json             how it came about: configuration, seed, versions, data hashes, metrics
heldout.jsonl        the test part, never trained on: one {"text", "label"} a line
heldout.jsonl also holds the "features" of a model that reads numbers beside the text
predictions.jsonl    what the model answered on the test part: one {"label", "predicted", "logits"} a line
metrics.jsonl        the figures of each epoch, and those of the test part
adapter_*            of a checkpoint trained with LoRA (see `training.adapter`)
model.safetensors    of every other checkpoint, and of a merged one; transformers loads that folder as it is
merge_certificate.json   of a merged checkpoint (see `training.merge`)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer

from contract.command import UsageError
from contract.files import read_json, read_json_lines, sha256_of, whole_file, write_bytes, write_json, write_json_lines
from training.adapter import base_name, is_adapter, load_adapter, save_adapter
from training.assemble import Task
from training.batches import Encoded, encode
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.lora import lora_modules
from training.masked import unmask
from training.options import Finetune
from training.pretrained import EMBEDDED, WEIGHTS_FILE, find_base, load_model, load_tokenizer, read_labels
from training.split import spread_rows

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
        """Whether `training.merge` wrote the folder."""
        return (self.folder / CERTIFICATE_FILE).exists()

    @property
    def feature_names(self) -> list[str]:
        """Of the numbers that the model reads beside the text, in order; empty where it reads text alone."""
        return [str(name) for name in self.run.get("data", {}).get("features", [])]

    def encode(self, rows: Sequence[dict[str, Any]]) -> Encoded:
        """Rows with a "text" each, and "features" where the model reads them, as the model's input.

        Raises:
            UsageError: a row lacks the features, or has another number of them.
        """
        wanted = self.model.config.num_features
        for row in rows:
            given = row.get("features") or []
            if wanted and not (len(given) == wanted and all(isinstance(number, int | float) for number in given)):
                raise UsageError(f'"features" is {given!r}; {self.folder} reads {wanted} numbers beside each text')
        features = [row["features"] for row in rows] if wanted else None
        return encode(self.tokenizer, [row["text"] for row in rows], [], features=features)

    def encode_labelled(self, rows: Sequence[dict[str, Any]]) -> Encoded:
        """`encode`, with the class of each row's "label". Raises what that and `classes_of` do."""
        return dataclasses.replace(self.encode(rows), labels=self.classes_of(rows))

    def classes_of(self, rows: Iterable[dict[str, Any]]) -> list[int]:
        """The class of the "label" of each held-out row. Raises `UsageError` for one that the model does not know."""
        classes = {label: number for number, label in enumerate(self.labels)}
        labels = [row["label"] for row in rows]
        if unknown := sorted(set(labels) - set(classes)):
            raise UsageError(f"{self.folder / HELDOUT_FILE} has the label {unknown[0]!r}, which the model does not know")
        return [classes[label] for label in labels]


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
        model = _load_adapted(folder, base_sha256, config, num_labels=len(labels))
    else:
        model, _ = load_model(folder, num_labels=len(labels), new_head=False)
    side = run["configuration"].get("truncation_side", "right")  # earlier runs had no choice
    tokenizer = load_tokenizer(folder, max_length=max_length, side=side)
    return Checkpoint(folder, model.eval(), tokenizer, labels, max_length, run)


def check_certified(folder: Path) -> str:
    """The sha256 of a merged checkpoint's weights, after comparing it with the certificate.

    Raises:
        UsageError: no certificate, one that does not pass, or weights that are missing or changed since.
    """
    if not (folder / CERTIFICATE_FILE).exists():
        raise UsageError(f"{folder} has no {CERTIFICATE_FILE}: merge it first with python -m training.merge")
    certificate = read_json(folder / CERTIFICATE_FILE)
    if certificate.get("passed") is not True:
        raise UsageError(f"the merge certificate of {folder} does not pass: {certificate.get('failures')}")
    if not (folder / WEIGHTS_FILE).exists():
        raise UsageError(f"{folder / WEIGHTS_FILE} is missing: merge again")
    digest = sha256_of(folder / WEIGHTS_FILE)
    certified = certificate.get("hashes", {}).get("merged")
    if digest != certified:
        raise UsageError(f"{folder / WEIGHTS_FILE} has sha256 {digest}, its certificate says {certified}: merge again")
    return digest


def _load_adapted(folder: Path, base_sha256: str, config: dict[str, Any], *, num_labels: int) -> BertForSequenceClassification:
    base = find_base(base_name(folder))
    if not (base / WEIGHTS_FILE).exists():
        raise UsageError(f"{base / WEIGHTS_FILE} is missing, on which {folder} was trained; restore that base, or train again")
    digest = sha256_of(base / WEIGHTS_FILE)
    if digest != base_sha256:
        raise UsageError(
            f"the base {base} has sha256 {digest}, but {folder} was trained on {base_sha256}; restore that base, or train again"
        )
    ours = BertConfig.from_dict(config)
    model, report = load_model(
        base,
        num_labels=num_labels,
        new_head=True,
        max_positions=ours.max_position_embeddings,
        num_attention_heads=ours.num_attention_heads,
        num_features=ours.num_features,
        log_features=ours.log_features,
    )
    report.check_adaptable(base)
    load_adapter(model, folder)
    return model


def write_checkpoint(
    folder: Path, model: BertForSequenceClassification, task: Task, options: Finetune, run: dict[str, Any]
) -> None:
    """Write what a run trained: the adapter alone where it was LoRA, the whole model otherwise. Masks are folded in."""
    unmask(model)
    if next(lora_modules(model), None) is None:
        write_weights(folder, model)
    else:
        local = options.base != EMBEDDED and Path(options.base).expanduser().is_dir()
        save_adapter(model, folder, base=str(task.base.absolute()) if local else options.base)
    dataset, features = task.dataset, model.config.num_features
    write_common(
        folder,
        config=model.config,
        labels=dataset.names,
        tokenizer_json=task.tokenizer.to_str(),
        run=run,
        heldout=(
            {"text": dataset.texts[row], "label": dataset.names[dataset.labels[row]]}
            | ({"features": dataset.features[row]} if features else {})
            for row in task.split.test
        ),
    )


def write_weights(folder: Path, model: BertForSequenceClassification) -> None:
    """Write the whole model as `model.safetensors`, under Hugging Face's names. Raises OSError when the disk is full."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    try:
        with whole_file(folder / WEIGHTS_FILE) as temporary:
            save_file(tensors, temporary, {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{WEIGHTS_FILE}: {error}") from error


def write_common(
    folder: Path,
    *,
    config: BertConfig,
    labels: list[str],
    tokenizer_json: str,
    run: dict[str, Any],
    heldout: Iterable[dict[str, Any]],
) -> None:
    """Write what every checkpoint has, whatever its weights."""
    values = dataclasses.asdict(config)
    del values["num_labels"]
    if len(set(config.layer_heads)) == 1:
        values["num_attention_heads"] = config.layer_heads[0]  # one number, which transformers reads too
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
    configuration = run["configuration"]
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": configuration["max_length"],
            "truncation_side": configuration.get("truncation_side", "right"),
            **special,
        },
    )


def read_heldout(folder: Path) -> Iterator[dict[str, Any]]:
    """The held-out rows of a checkpoint: {"text", "label"}, and "features" where the model reads them."""
    return read_json_lines(folder / HELDOUT_FILE)


def heldout_rows(folder: Path, limit: int) -> list[dict[str, Any]]:
    """At most `limit` held-out rows, evenly taken, on which merge and build prove their work.

    Raises:
        UsageError: there are none.
    """
    rows = spread_rows(list(read_heldout(folder)), limit)
    if not rows:
        raise UsageError(f"{folder / HELDOUT_FILE} holds no texts to compare the logits on; train and merge again")
    return rows
