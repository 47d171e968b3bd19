"""From options to what the loop trains: the data set and its parts, the tokenizer, and the model with its strategy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer

from contract.command import UsageError
from contract.files import read_json
from training.batches import Encoded, encode
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.datasets import Dataset, read_dataset
from training.loop import seed_everything
from training.options import Finetune
from training.pretrained import find_base, load_model, load_tokenizer, read_labels
from training.split import Split, hash_rows, split_dataset
from training.strategies import apply_strategy, describe_counts


@dataclass(frozen=True)
class Task:
    """The texts of a run, split and encoded."""

    base: Path
    dataset: Dataset
    split: Split
    tokenizer: Tokenizer
    train: Encoded
    validation: Encoded
    test: Encoded

    def describe(self) -> str:
        """How many texts, for people."""
        texts = len(self.train.ids)
        mean, truncated = sum(self.train.lengths) / texts, sum(self.train.truncated) / texts
        return (
            f"{texts} training texts ({mean:.0f} tokens on average, {truncated:.1%} truncated), "
            f"{len(self.validation.ids)} validation, {len(self.test.ids)} test"
        )


@dataclass(frozen=True)
class Assembled:
    """What a run trains, and on what."""

    task: Task
    model: BertForSequenceClassification
    description: str
    """Of the model and what of it trains."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What must be the same for the run to be continued, beyond its options and its data."""
    loss_to_beat: float = math.inf
    """Validation loss of the model as it is, where training may leave it so."""
    complete: Callable[[Path], None] = lambda folder: None
    """Adds to the checkpoint folder what goes beyond the usual files."""


class Assemble(Protocol):
    """A way to make what a run trains."""

    def __call__(self, options: Finetune, device: torch.device, *, progress: bool) -> Assembled:
        """Raises `UsageError` for data, a base or options that cannot be used."""


def assemble(options: Finetune, device: torch.device, *, progress: bool) -> Assembled:
    """Everything for a run of `training.finetune`. Raises `UsageError` for data, a base or options that cannot be used."""
    task = read_task(options, progress=progress)
    return Assembled(task, *build_model(options, task, device))


def read_data(options: Finetune) -> Dataset:
    """The whole data set of a run. Raises `UsageError` for data that cannot be used."""
    dataset = read_dataset(
        options.dataset,
        data=options.data,
        text=options.text,
        label=options.label,
        drop_empty=options.drop_empty,
        seed=options.seed,
        tabular=options.tabular,
        cleaning=options.cleaning,
    )
    return in_order_of_head(dataset, find_base(options.base)) if options.keep_head else dataset


def in_order_of_head(dataset: Dataset, base: Path) -> Dataset:
    """The data set with its classes in the order of the base's own head. Raises `UsageError` when they are other classes."""
    names = read_labels(read_json(base / "config.json"), base)
    if sorted(names) != sorted(dataset.names):
        raise UsageError(
            f"--keep-head: the head of {base} gives {', '.join(names)}, {dataset.name} has {', '.join(dataset.names)}; write "
            "the data's labels into id2label of its config.json, in the order of the logits"
        )
    place = [names.index(name) for name in dataset.names]
    return replace(dataset, names=names, labels=[place[label] for label in dataset.labels])


def split_data(options: Finetune, dataset: Dataset) -> Split:
    """The parts of a run, as its options and its seed cut them. Raises `UsageError` for shares that do not fit."""
    return split_dataset(
        dataset,
        validation_share=options.validation_share,
        test_share=options.test_share,
        train_rows=options.train_rows,
        seed=options.seed,
    )


def read_again(run: dict[str, Any]) -> tuple[Finetune, Dataset, Split]:
    """Options, data set and parts of the run that wrote this `run.json`, from where it read them.

    Raises:
        UsageError: the data is no longer there, or no longer what the run was trained on.
    """
    options = Finetune.from_json(run["configuration"])
    try:
        dataset = read_data(options)
    except UsageError as error:
        raise UsageError(f"the texts that the checkpoint was trained on cannot be read again ({error})") from error
    split = split_data(options, dataset)
    if hash_rows(dataset, split.train) != run["data"]["parts"]["train"]["sha256"]:
        raise UsageError(
            f"the data of {options.output} has changed since it was trained (its training part has another sha256)"
        )
    return options, dataset, split


def read_task(options: Finetune, *, progress: bool) -> Task:
    """Read, split and tokenize. Raises `UsageError` for data, shares or a base that cannot be used."""
    base = find_base(options.base)
    dataset = read_data(options)
    return encode_task(options, base, dataset, split_data(options, dataset), progress=progress)


def encode_task(options: Finetune, base: Path, dataset: Dataset, split: Split, *, progress: bool) -> Task:
    """Tokenize the parts of a data set. Raises `UsageError` for a base without a tokenizer."""
    tokenizer = load_tokenizer(base, max_length=options.max_length, side=options.truncation_side)
    parts = []
    for part, rows in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        texts, labels = [dataset.texts[row] for row in rows], [dataset.labels[row] for row in rows]
        features = [dataset.features[row] for row in rows] if options.tabular else None
        title = f"tokenizing {part}" if progress else ""
        parts.append(encode(tokenizer, texts, labels, features=features, progress=title))
    return Task(base, dataset, split, tokenizer, *parts)


def build_model(options: Finetune, task: Task, device: torch.device) -> tuple[BertForSequenceClassification, str]:
    """The seeded model on `device` with only what the strategy trains left trainable, and both in words.

    Raises:
        UsageError: the base, or an option that does not fit it.
    """
    seed_everything(options.seed)
    model, origin = _scratch(options, task) if options.strategy == "scratch" else _loaded(options, task)
    reads = model.config.max_position_embeddings
    if options.max_length > reads:
        raise UsageError(f"--max-length is {options.max_length}; the model reads at most {reads} tokens")
    if task.train.features is not None and model.tabular is not None:
        deviation, mean = torch.std_mean(model.tabular.scale(task.train.features), dim=0)
        model.tabular.mean.copy_(mean)
        model.tabular.std.copy_(torch.where(deviation > 0, deviation, 1.0))  # a constant feature says nothing: it stays 0
    try:
        trains = apply_strategy(
            model,
            options.strategy,
            k=options.k,
            mask_share=options.mask_share,
            rank=options.rank,
            alpha=options.alpha,
            lora_dropout=options.lora_dropout,
            targets=options.targets,
            layers=options.layers,
            rslora=options.rslora,
            seed=options.seed,
        )
    except ValueError as error:
        raise UsageError(f"--strategy {options.strategy} with its --k, --targets or --layers: {error}") from error
    return model.to(device), f"{origin}\n{options.strategy}: {trains}; {describe_counts(model)}"


def _scratch(options: Finetune, task: Task) -> tuple[BertForSequenceClassification, str]:
    hidden, layers, heads, intermediate = options.scratch_size
    try:
        config = BertConfig(
            vocab_size=task.tokenizer.get_vocab_size(),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            max_position_embeddings=options.max_positions or 512,
            pad_token_id=task.tokenizer.token_to_id("[PAD]") or 0,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
            num_labels=len(task.dataset.names),
            num_features=len(task.dataset.feature_names) if options.tabular else 0,
            log_features=options.log_features,
        )
    except ValueError as error:
        raise UsageError(f"--scratch-size {options.scratch_size}: {error}") from error
    return BertForSequenceClassification(config), f"random weights, tokenizer of {options.base}"


def _loaded(options: Finetune, task: Task) -> tuple[BertForSequenceClassification, str]:
    model, report = load_model(
        task.base,
        num_labels=len(task.dataset.names),
        new_head=not options.keep_head,
        max_positions=options.max_positions,
        num_features=len(task.dataset.feature_names) if options.tabular else 0,
        log_features=options.log_features,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        **({} if options.heads is None else {"num_attention_heads": options.heads}),
    )
    if options.strategy == "lora":
        report.check_adaptable(task.base)
    new = ", ".join(report.initialised) or "nothing"
    return model, f"base {options.base}: {len(report.loaded)} tensors loaded; new: {new}"
