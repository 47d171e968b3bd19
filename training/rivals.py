"""transformers' Trainer with PEFT, timed as `training.bench` times ours: the same texts, rank, modules and texts a batch.

Needs the packages transformers, peft and accelerate (the `dev` extra); nothing else of this project does.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from training.batches import Encoded


@dataclass(frozen=True)
class Settings:
    """What users set. The defaults are the usual settings: fp32, texts in random order, padded to the batch, dropout."""

    dropout: float = 0.1
    """Of the base (its config says 0.1), and before lora_A (as in PEFT's examples)."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of TrainingArguments."""
    model: dict[str, Any] = field(default_factory=dict)
    """Of from_pretrained."""


def fast_settings(dtype: torch.dtype) -> dict[str, Settings]:
    """What an expert tries: texts of like length together, no dropout, bf16 where ours has it, either attention, and the
    frozen base in fp32 (autocast rounds it in every step) or already in bf16 (PEFT keeps the adapters in fp32)."""
    arguments = {"train_sampling_strategy": "group_by_length", "bf16": dtype == torch.bfloat16}
    weights = {"fp32 base": torch.float32} | ({"bf16 base": dtype} if dtype == torch.bfloat16 else {})
    return {
        f"{attention}, {name}": Settings(0.0, arguments, {"attn_implementation": attention, "dtype": stored})
        for attention in ("sdpa", "eager")
        for name, stored in weights.items()
    }


class _Clock(transformers.TrainerCallback):  # type: ignore[misc]
    """Time from the start of the first step to the end of the last."""

    def __init__(self) -> None:
        self.started = self.ended = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


class PeftTrainer:
    """LoRA by PEFT on a base folder, one epoch at a time."""

    def __init__(self, base: Path, train: Encoded, *, settings: Settings, rank: int, alpha: float, batch_rows: int) -> None:
        dropout = {"hidden_dropout_prob": settings.dropout, "attention_probs_dropout_prob": settings.dropout}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, **dropout, **settings.model)
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=rank,
            lora_alpha=alpha,
            lora_dropout=settings.dropout,
            target_modules=["query", "value"],
        )
        self._model = peft.get_peft_model(model, config)
        self._arguments, self._batch_rows = settings.arguments, batch_rows
        self._collator = transformers.DataCollatorWithPadding(transformers.AutoTokenizer.from_pretrained(base))
        self._rows = [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label, "length": len(ids)}
            for ids, label in zip(train.ids, train.labels, strict=True)
        ]

    def epoch_s(self) -> float:
        """Seconds of one epoch, its steps alone: nothing before the first and nothing after the last."""
        clock = _Clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self._batch_rows,
                num_train_epochs=1,
                learning_rate=1e-3,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
                **self._arguments,
            )
            trainer = transformers.Trainer(
                self._model, arguments, train_dataset=self._rows, data_collator=self._collator, callbacks=[clock]
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return clock.ended - clock.started
