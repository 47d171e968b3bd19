"""Fine-tune BERT with LoRA on labelled texts and write a checkpoint folder.

    python -m training.finetune --output build/finetuned
    python -m training.finetune --dataset csv --data reviews.csv --text review --label stars --output build/reviews

The test part is evaluated once, at the end, with the epoch that the validation part chose. Merge the result with
`python -m training.merge`.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from contract.command import UsageError, run_command
from contract.files import new_folder, sha256_of
from training.adapter import adapter_bytes, save_adapter
from training.batches import Encoded, encode
from training.bert import BertForSequenceClassification
from training.checkpoint import write_common
from training.datasets import Dataset, DatasetName, read_dataset
from training.loop import EpochResult, Precision, evaluate, fit, resolve_precision, seed_everything
from training.lora import check_rank, count_parameters, inject_lora
from training.pretrained import EMBEDDED, WEIGHTS_FILE, find_base, load_model, load_tokenizer
from training.split import Split, hash_rows, split_dataset


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune BERT with LoRA and write a checkpoint folder."""

    output: Path
    """Folder to write; it must not exist."""
    dataset: DatasetName = "docstrings"
    """docstrings: of the installed libraries. stackoverflow: Kaggle's closed questions. csv: any CSV."""
    data: Path | None = None
    """CSV file, plain or .gz, for stackoverflow and csv."""
    text: str | None = None
    """Column of the texts, for csv."""
    label: str | None = None
    """Column of the labels, for csv."""
    drop_empty: bool = False
    """Leave out rows with an empty text or label instead of stopping at them."""
    train_rows: int | None = None
    """Train on at most this many rows, drawn at random."""
    validation_share: float = 0.1
    """Share of the rows that chooses the best epoch."""
    test_share: float = 0.2
    """Share of the rows that is evaluated once at the end."""
    base: str = EMBEDDED
    """Base model: minilm (embedded), a Hugging Face BERT folder, or a hub name."""
    rank: int = 8
    """LoRA rank r: the inner dimension of the update, an integer of at least 1."""
    alpha: float = 16.0
    """LoRA alpha; the update is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout before lora_A, in [0, 1). On a CPU drawing it costs a third of the training time."""
    targets: tuple[str, ...] = ("query", "key", "value", "dense")
    """Linear layers to adapt: ends of module paths (query fits every ...self.query) or shell patterns over whole paths."""
    layers: tuple[int, ...] | None = None
    """Encoder layers to adapt, 0 next to the input; all of them when left out."""
    dropout: float = 0.0
    """Dropout of the base model while training; LoRA has its own."""
    max_length: int = 128
    """Tokens read of a text; what is longer is truncated, in training and in serving alike."""
    epochs: int = 2
    """Passes over the training part."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; vectors are not decayed."""
    warmup_share: float = 0.06
    """Share of the steps over which the learning rate rises."""
    tokens_per_batch: int = 2048
    """Budget of one batch: texts x longest text."""
    precision: Precision = "auto"
    """auto takes bf16 autocast where the hardware has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    seed: int = 0
    """Of the split, the initial weights, the order of the texts and dropout."""

    def __post_init__(self) -> None:
        try:
            check_rank(self.rank)
        except ValueError as error:
            raise UsageError(f"--rank: {error}") from error
        if self.max_length < 3:  # the tokenizer would not truncate at all below 2
            raise UsageError(f"--max-length is {self.max_length}; it must be at least 3: [CLS], one token of the text, [SEP]")
        at_least_one = {"epochs": self.epochs, "tokens-per-batch": self.tokens_per_batch}
        if self.train_rows is not None:
            at_least_one["train-rows"] = self.train_rows
        for name, number in at_least_one.items():
            if number < 1:
                raise UsageError(f"--{name} is {number}; it must be at least 1")
        for name, share in {
            "lora-dropout": self.lora_dropout,
            "dropout": self.dropout,
            "warmup-share": self.warmup_share,
        }.items():
            if not 0 <= share < 1:
                raise UsageError(f"--{name} is {share}; it must be in [0, 1)")
        if not (self.validation_share > 0 and self.test_share > 0 and self.validation_share + self.test_share < 1):
            raise UsageError(
                f"--validation-share {self.validation_share} and --test-share {self.test_share} must be above 0 and sum below 1"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device is cuda, but torch sees no CUDA device; use cpu, or auto")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise UsageError(
                f"--learning-rate {self.learning_rate} must be above 0, --weight-decay {self.weight_decay} not below 0"
            )


@dataclass(frozen=True)
class Parts:
    """The encoded parts of the split."""

    train: Encoded
    validation: Encoded
    test: Encoded


def finetune(options: Finetune) -> None:
    """Run the whole of it; see the module docstring."""
    started = time.perf_counter()
    if options.threads:
        torch.set_num_threads(options.threads)
    with new_folder(options.output) as folder:
        base = find_base(options.base)
        dataset = read_dataset(
            options.dataset,
            data=options.data,
            text=options.text,
            label=options.label,
            drop_empty=options.drop_empty,
            seed=options.seed,
        )
        split = split_dataset(
            dataset,
            validation_share=options.validation_share,
            test_share=options.test_share,
            train_rows=options.train_rows,
            seed=options.seed,
        )
        model = build_model(options, base, num_labels=len(dataset.names))
        tokenizer = load_tokenizer(base, max_length=options.max_length)
        parts = Parts(
            *(
                encode(
                    tokenizer,
                    [dataset.texts[row] for row in rows],
                    [dataset.labels[row] for row in rows],
                    progress=f"tokenizing {part}",
                )
                for part, rows in (("train", split.train), ("validation", split.validation), ("test", split.test))
            )
        )
        epochs, test = train(options, model, parts)
        save_adapter(model, folder, base=options.base if options.base == EMBEDDED else str(base.absolute()))
        write_common(
            folder,
            config=model.config,
            labels=dataset.names,
            tokenizer_json=tokenizer.to_str(),
            run=describe_run(options, base, dataset=dataset, split=split, parts=parts, epochs=epochs)
            | {"test": dataclasses.asdict(test)},
            heldout=({"text": dataset.texts[row], "label": dataset.names[dataset.labels[row]]} for row in split.test),
        )
        size = adapter_bytes(folder)
    print(f"wrote {options.output} (adapter and head: {size / 1e6:.2f} MB) in {time.perf_counter() - started:.0f} s")


def build_model(options: Finetune, base: Path, *, num_labels: int) -> BertForSequenceClassification:
    """The base model with fresh adapters and head, seeded, on its device."""
    seed_everything(options.seed)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    model, report = load_model(
        base,
        num_labels=num_labels,
        new_head=True,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
    )
    if options.max_length > model.config.max_position_embeddings:
        raise UsageError(
            f"--max-length is {options.max_length}; {options.base} reads at most {model.config.max_position_embeddings} tokens"
        )
    try:
        paths = inject_lora(
            model,
            options.targets,
            rank=options.rank,
            alpha=options.alpha,
            dropout=options.lora_dropout,
            layers=options.layers,
        )
    except ValueError as error:
        raise UsageError(f"--targets or --layers: {error}") from error
    trainable, total = count_parameters(model)
    print(f"base {options.base}: {len(report.loaded)} tensors loaded; new: {', '.join(report.initialised)}")
    print(f"LoRA rank {options.rank} on {len(paths)} layers: {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    return model.to(device)


def train(options: Finetune, model: BertForSequenceClassification, parts: Parts) -> tuple[list[EpochResult], Any]:
    """Fit, printing each epoch, then evaluate the test part once."""
    dtype = resolve_precision(options.precision, next(model.parameters()).device)
    tokens = sum(parts.train.lengths)
    print(
        f"{len(parts.train.ids)} training texts ({tokens / len(parts.train.ids):.0f} tokens on average, "
        f"{sum(parts.train.truncated) / len(parts.train.ids):.1%} truncated), {len(parts.validation.ids)} validation, "
        f"{len(parts.test.ids)} test; {str(dtype).removeprefix('torch.')} on {torch.get_num_threads()} threads"
    )
    results = fit(
        model,
        parts.train,
        parts.validation,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_share=options.warmup_share,
        tokens_per_batch=options.tokens_per_batch,
        dtype=dtype,
        seed=options.seed,
        on_epoch=_print_epoch,
    )
    test = evaluate(model, parts.test, tokens_per_batch=options.tokens_per_batch, dtype=torch.float32, progress="test")
    best = max(result.epoch for result in results if result.best)
    print(f"test, with epoch {best}: {test}")
    return results, test


def _print_epoch(result: EpochResult) -> None:
    print(
        f"epoch {result.epoch}: train loss {result.train_loss:.4f} ({result.samples_per_s:.1f} texts/s); validation "
        f"{result.validation}{'  <- best so far' if result.best else ''}",
        flush=True,
    )


def describe_run(
    options: Finetune, base: Path, *, dataset: Dataset, split: Split, parts: Parts, epochs: list[EpochResult]
) -> dict[str, Any]:
    """The content of `run.json`, from the objects in hand."""
    configuration = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(options).items()
    }
    rows = {"train": split.train, "validation": split.validation, "test": split.test}
    return {
        "configuration": configuration,
        "base": {"source": options.base, "sha256": sha256_of(base / WEIGHTS_FILE)},
        "data": {
            "name": dataset.name,
            "labels": dataset.names,
            "parts": {part: {"rows": len(numbers), "sha256": hash_rows(dataset, numbers)} for part, numbers in rows.items()},
            "truncated_share": sum(parts.train.truncated) / len(parts.train.truncated),
        },
        "epochs": [dataclasses.asdict(result) for result in epochs],
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")},
    }


if __name__ == "__main__":
    run_command(lambda: finetune(tyro.cli(Finetune, prog="python -m training.finetune", description=__doc__)))
