"""What a published fine-tuning configuration consists of; `training.recipes` is the table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.datasets import DatasetName

READ = ("max_length", "precision", "seed", "validation_share", "test_share")
"""Fields of `Finetune` that decide every run."""
TRAINED = ("epochs", "batch_rows", "learning_rate", "schedule", "warmup_share", "weight_decay", "dropout", "train_rows")
"""Those that decide a run that trains."""
OF_STRATEGY: Mapping[str, tuple[str, ...]] = {
    "first": ("k",),
    "lora": ("rank", "alpha", "rslora", "lora_dropout", "targets", "layers"),
    "masked": ("mask_share",),
    "scratch": ("scratch_size",),
}
OF_DATASET: Mapping[str, tuple[str, ...]] = {"complaints": ("sample_frac", "class_threshold", "min_text_length")}


@dataclass(frozen=True, kw_only=True)
class Published:
    """The figures of the source; None where it has none. Shares are in [0, 1]."""

    trainable: int | None = None
    total: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    """Macro average."""
    weighted_f1: float | None = None
    best_epoch: int | None = None
    seconds_per_epoch: float | None = None
    """On the source's own GPU: to be compared within a source, not with other machines."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published configuration."""

    name: str
    """What it is: data set, then strategy."""
    alias: str
    replays: str
    """What is replayed, in one sentence with its source."""
    base: str
    """Hub name of the base model; for `scratch`, of the tokenizer."""
    architecture: Mapping[str, int]
    """The base's sizes under `BertConfig`'s names: parameters are counted without its weights."""
    num_labels: int = 2
    dataset: DatasetName
    strategy: str
    options: Mapping[str, Any]
    """Every published setting, a field of `Finetune`."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the source leaves open, as chosen here."""
    test_rows: int | None = None
    """Texts in the test part, where the source capped it."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Published rows of the parts, "train", "validation" and "test", where the source gives them."""
    published: Published = field(default_factory=Published)
    remark: str = ""
    """Why our count or setting differs from the published one."""
    otherwise: tuple[str, ...] = ()
    """What this trainer does otherwise than the source, whatever the options."""

    @property
    def settings(self) -> dict[str, Any]:
        """All fields of `Finetune` that the recipe fixes."""
        return {"dataset": self.dataset, "base": self.base, "strategy": self.strategy, **self.chosen, **self.options}

    @property
    def left_open(self) -> list[str]:
        """The fields of `Finetune` that decide this run and that the source does not give."""
        trained = () if self.strategy == "none" else TRAINED
        deciding = (*READ, *OF_DATASET.get(self.dataset, ()), *trained, *OF_STRATEGY.get(self.strategy, ()))
        known = {"train_rows"} if "train" in self.rows else set()
        return [name for name in deciding if name not in self.options and name not in known]

    def differences(self, configuration: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
        """How a run's configuration, as `run.json` has it, departs from the recipe: "epochs: 1 instead of 5".

        A local folder with the name of the recipe's base counts as that base. Shares say nothing of how much data there was,
        so the rows are compared: those of `parts`, as `run.json` has them, with the published ones.
        """
        wanted = json.loads(json.dumps(self.settings))  # tuples as lists, as in the file
        if str(configuration.get("base", "")).rstrip("/").split("/")[-1] == self.base.split("/")[-1]:
            del wanted["base"]
        silent = {"validation_share", "test_share", *(["train_rows"] if "train" in self.rows else [])}
        found = [
            f"{name}: {show_setting(configuration[name])} instead of {show_setting(value)}"
            for name, value in wanted.items()
            if name not in silent and name in configuration and configuration[name] != value
        ]
        rows = {part: content["rows"] for part, content in (parts or {}).items()}
        found += [
            f"{part}: {rows[part]:,} rows instead of {number:,}"
            for part, number in self.rows.items()
            if rows.get(part, number) < number
        ]
        if "test" not in self.rows and configuration.get("test_share", 1.0) < self.options.get("test_share", 0.0):
            found.append("test: fewer rows than the published part of the same data")
        return found


def show_setting(value: Any) -> str:
    """A setting for a sentence: `1, 2` for a list, three digits for a fraction, `all` for one that limits nothing."""
    if value is None:
        return "all"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
