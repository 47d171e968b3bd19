"""transformers' Trainer with PEFT, timed as `training.bench` times ours: the same texts, rank, modules and batch.

Needs the packages transformers, peft and accelerate (the `dev` extra); nothing else of this project does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import transformers

from training.batches import Encoded

_SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "best": {"bf16": True, "train_sampling_strategy": "group_by_length"},
}
"""Of TrainingArguments. Usual: fp32, padded to the batch, texts in random order, the dropout that the base's config and
PEFT's own classification example have. Best: bf16, texts of like length together, no dropout: as ours."""


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

    def __init__(self, base: Path, train: Encoded, *, settings: str, rank: int, alpha: float, batch_rows: int) -> None:
        dropout = {} if settings == "usual" else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, **dropout)
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.1 if settings == "usual" else 0.0,
            target_modules=["query", "value"],
        )
        self._model = peft.get_peft_model(model, config)
        self._settings, self._batch_rows = _SETTINGS[settings], batch_rows
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
                **self._settings,
            )
            trainer = transformers.Trainer(
                self._model, arguments, train_dataset=self._rows, data_collator=self._collator, callbacks=[clock]
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return clock.ended - clock.started
