"""What a published fine-tuning configuration consists of; `training.recipes` is the table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.datasets import DatasetName


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
    published: Published = field(default_factory=Published)
    remark: str = ""
    """Why our count or setting differs from the published one."""

    @property
    def settings(self) -> dict[str, Any]:
        """All fields of `Finetune` that the recipe fixes."""
        return {"dataset": self.dataset, "base": self.base, "strategy": self.strategy, **self.chosen, **self.options}

    def differences(self, configuration: Mapping[str, Any]) -> list[str]:
        """How a run's configuration, as `run.json` has it, departs from the recipe: "epochs: 1 instead of 5".

        A local folder with the name of the recipe's base counts as that base.
        """
        wanted = json.loads(json.dumps(self.settings))  # tuples as lists, as in the file
        if str(configuration.get("base", "")).rstrip("/").split("/")[-1] == self.base.split("/")[-1]:
            del wanted["base"]
        return [
            f"{name}: {show_setting(configuration[name])} instead of {show_setting(value)}"
            for name, value in wanted.items()
            if name in configuration and configuration[name] != value
        ]


def show_setting(value: Any) -> str:
    """A setting for a sentence: `1, 2` for a list, three digits for a fraction."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
