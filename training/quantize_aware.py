"""Fine-tune a merged checkpoint for int8: one epoch through the rounding that int8 will do.

    python -m training.quantize_aware build/merged --output build/trained-int8
    python -m training.quantize_aware build/merged --texts unlabelled.txt --output build/trained-int8
    python -m builders.build build/trained-int8 --precision int8 --output build/release

1. Ranges of what enters each linear layer are observed on training texts; of several percentiles the one whose int8 is
   nearest to fp32 on the validation part is taken. That is static int8.
2. The weights train with weights and inputs rounded to that int8 (`training.fake_quantization`), in the loop of
   `training.finetune`, stopped and continued as there.
3. The checkpoint that is written is certified and as good as a merged one, and carries the ranges that it was trained with
   (`training.trained_int8`), with which `builders.build` quantises it. The figures in its run.json are those of int8.

What is learnt is to answer as the fp32 model: the loss is taken against its probabilities, so that no labels are needed
(Hinton et al. 2015, https://arxiv.org/abs/1503.02531, at temperature 1). That is the default because int8 is judged by how
little it differs from fp32, and because labels in a second training teach what the first one has refused to overfit.
`--distillation 0.5` mixes the labels in by half, 0 trains on them alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from contract.command import Failure, UsageError, run_command
from contract.files import read_json
from training.assemble import Assembled, Task, encode_task, read_again
from training.batches import Encoded
from training.bert import BertForSequenceClassification
from training.checkpoint import RUN_FILE, Checkpoint, check_certified, heldout_rows, load_checkpoint
from training.evaluation import EVALUATION_FACTOR, compute_logits, measure
from training.fake_quantization import CALIBRATION_TOKENS_PER_BATCH, fake_quantize, observe_inputs
from training.finetune import finetune
from training.merge import certify_folder
from training.options import Finetune
from training.pretrained import load_model
from training.ranges import Range, widest_of_the_best
from training.split import spread_rows
from training.strategies import apply_strategy
from training.tracking import TrackerName
from training.trained_int8 import TrainedInt8, Validation, read_trained, write_trained
from training.unlabelled import read_unlabelled

PROBE_TEXTS = 256  # held-out texts on which the weights that were written are certified


@dataclass(frozen=True, kw_only=True)
class QuantizeAware:
    """Fine-tune a merged checkpoint for int8, so that it answers as it does in fp32."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Merged checkpoint folder, of training.merge."""
    output: Path
    """Folder to write; it must not exist."""
    texts: Path | None = None
    """Texts to train on without labels, .jsonl or .csv with a "text" or one a line; left out, the run's own are read again."""
    train_rows: int | None = None
    """Train on at most this many texts."""
    calibration_rows: int = 256
    """Training texts on which ranges are observed, and as many of the validation part that choose the percentile."""
    distillation: float = 1.0
    """Share of the fp32 model's own probabilities in what the loss is taken against, in [0, 1]; the labels are the rest."""
    strategy: Literal["full", "first", "last"] = "full"
    """What trains: everything, or the head and K encoder layers at the input or the head side. All layers are rounded."""
    k: int = 1
    """Encoder layers that first and last train."""
    epochs: int = 1
    """Passes over the training part."""
    learning_rate: float = 2e-5
    """Peak learning rate; the weights only have to move by steps of int8."""
    tokens_per_batch: int = 2048
    """Budget of one batch: texts x longest text."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where there is one. It computes in fp32, since bf16 rounds as coarsely as int8."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    resume: bool = False
    """Continue the interrupted run of this output, to the same bits; start it when there is none."""
    save_every_s: float = 300
    """Seconds between two savings of the run's state."""
    track: TrackerName = "none"
    """Also report to tensorboard, wandb or mlflow."""

    def __post_init__(self) -> None:
        if self.calibration_rows < 1:
            raise UsageError(f"--calibration-rows is {self.calibration_rows}; it must be at least 1")
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"--distillation is {self.distillation}; it must be in [0, 1]")
        if self.texts is not None and self.distillation < 1:
            raise UsageError(f"--distillation is {self.distillation}, which needs labels, and --texts have none; use 1")

    def to_finetune(self, merged: Checkpoint) -> Finetune:
        """The run as `training.finetune` knows it: the checkpoint's own, of the same data, with what differs replaced."""
        before = Finetune.from_json(merged.run["configuration"])
        caps = [cap for cap in (self.train_rows, before.train_rows) if cap is not None]
        same = ("output", "strategy", "k", "epochs", "learning_rate", "tokens_per_batch", "device", "threads", "track")
        return dataclasses.replace(
            before,
            base=str(merged.folder.absolute()),
            train_rows=min(caps, default=None),
            max_positions=None,
            heads=None,
            layers=None,
            cache_prefix=False,
            batch_rows=None,
            dropout=0.0,
            weight_decay=0.0,  # it would pull the weights away from what was certified
            schedule="linear",
            precision="fp32",
            resume=self.resume,
            save_every_s=self.save_every_s,
            **{name: getattr(self, name) for name in same},
        )


def quantize_aware(options: QuantizeAware) -> None:
    """Run the command; see the module docstring.

    Raises:
        UsageError: a checkpoint that is not merged, whole and certified, or reads numbers beside the text; no texts.
        Failure: the training diverged, memory or disk ran out.
        SystemExit: SIGTERM or SIGINT came and the run is saved; 128 + the signal's number.
    """
    check_certified(options.checkpoint)
    merged = load_checkpoint(options.checkpoint)
    if merged.model.config.num_features:
        raise UsageError(
            f"{merged.folder} reads numbers beside the text, which training for int8 does not take; "
            "python -m builders.build --precision int8 quantises it without"
        )
    done = read_trained(options.output) if options.resume and options.output.exists() else None
    if done is not None and done.distillation != options.distillation:
        raise UsageError(f"{options.output} is the finished run of --distillation {done.distillation:g}; name another output")
    finetune(options.to_finetune(merged), assemble=functools.partial(_assemble, options, merged))


@dataclass(frozen=True)
class _Quantised:
    """Static int8, which the training starts from, and what becomes of it."""

    options: QuantizeAware
    run: Finetune
    task: Task
    model: BertForSequenceClassification
    """It rounds."""
    percentile: str
    ranges: dict[str, Range]
    fp32: Tensor
    """Logits [R, C] of the validation part in fp32."""
    static: Tensor
    """The same in static int8."""

    def complete(self, folder: Path) -> None:
        """Write ranges and validation rows beside the weights, and certify what was written. Raises Failure."""
        trained = _answer(self.model, self.task.validation, self.run)
        for title, logits in (("static int8", self.static), ("trained int8", trained)):
            error, flips = (logits - self.fp32).abs().mean(), (logits.argmax(1) != self.fp32.argmax(1)).float().mean()
            print(f"{title} beside fp32 on {len(logits)} validation texts: logits off by {error:.4g}, {flips:.2%} other labels")
        dataset = self.task.dataset
        rows = Validation(
            [dataset.texts[row] for row in self.task.split.validation],
            [] if self.options.texts else self.task.validation.labels,
            self.fp32.tolist(),
            self.static.tolist(),
        )
        record = read_json(folder / RUN_FILE)
        kept = max((epoch["epoch"] for epoch in record["epochs"] if epoch["best"]), default=0)
        if not kept:
            print("no epoch made int8 better, and the weights stay as they were; lower --learning-rate, or give more texts")
        write_trained(folder, self._facts(kept), rows, dataset.names)
        plain = BertForSequenceClassification(self.model.config)
        plain.load_state_dict(self.model.state_dict())
        checkpoint = Checkpoint(folder, plain.eval(), self.task.tokenizer, dataset.names, self.run.max_length, record)
        rejected = self.run.output.with_name(self.run.output.name + ".rejected.json")
        certify_folder(checkpoint, folder, heldout_rows(folder, PROBE_TEXTS), rejected=rejected)

    def _facts(self, epoch: int) -> TrainedInt8:
        return TrainedInt8(
            ranges=self.ranges,
            percentile=self.percentile,
            origin=f"the training part of {self.task.dataset.name}",
            calibration_texts=min(self.options.calibration_rows, len(self.task.train.ids)),
            trained_texts=len(self.task.train.ids),
            epoch=epoch,
            distillation=self.options.distillation,
        )


def _assemble(options: QuantizeAware, merged: Checkpoint, run: Finetune, device: torch.device, *, progress: bool) -> Assembled:
    """The fake-quantised model, and the texts with the fp32 model's probabilities."""
    teacher = merged.model.to(device)
    task = _read_task(options, merged, run, progress=progress)
    train, fp32 = (
        _answer(teacher, part, run, progress=f"fp32, {name}" if progress else "")
        for name, part in (("train", task.train), ("validation", task.validation))
    )
    if not (train.isfinite().all() and fp32.isfinite().all()):
        raise Failure(f"the logits of {merged.folder} are not finite; its training diverged: train it again")
    task = dataclasses.replace(
        task,
        train=distilled(task.train, train, options.distillation),
        validation=distilled(task.validation, fp32, options.distillation),
    )
    model, _ = load_model(
        merged.folder,
        num_labels=len(merged.labels),
        new_head=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    try:
        trains = apply_strategy(model, options.strategy, k=options.k)
    except ValueError as error:
        raise UsageError(f"--strategy {options.strategy} with its --k: {error}") from error
    percentile, ranges = _calibrate(model.to(device), task, fp32, rows=options.calibration_rows, progress=progress)
    fake_quantize(model, ranges)
    static = _answer(model, task.validation, run)
    return Assembled(
        task,
        model,
        f"{merged.folder} rounded to int8, ranges of percentile {percentile}\n{options.strategy}: {trains}",
        loss_to_beat=measure(static, task.validation.labels, task.validation.targets).loss,
        identity={"distillation": options.distillation, "calibration_rows": options.calibration_rows},
        complete=_Quantised(options, run, task, model, percentile, ranges, fp32, static).complete,
    )


def _answer(model: BertForSequenceClassification, part: Encoded, run: Finetune, *, progress: str = "") -> Tensor:
    """fp32 [R, C]."""
    return compute_logits(model, part, tokens_per_batch=run.tokens_per_batch * EVALUATION_FACTOR, progress=progress)


def distilled(part: Encoded, logits: Tensor, share: float) -> Encoded:
    """The part with targets: `share` of the probabilities of `logits` [R, C], and the labels for the rest."""
    labels = F.one_hot(torch.tensor(part.labels), logits.shape[1])
    return dataclasses.replace(part, targets=share * logits.softmax(1) + (1 - share) * labels)


def _read_task(options: QuantizeAware, merged: Checkpoint, run: Finetune, *, progress: bool) -> Task:
    """The texts to train on. Raises UsageError when there are none."""
    if options.texts is None:
        try:
            _, dataset, split = read_again(merged.run)
        except UsageError as error:
            raise UsageError(f"{error}; pass texts like those of training by --texts FILE") from error
    else:
        share, tokens = run.validation_share, run.tokens_per_batch * EVALUATION_FACTOR
        dataset, split = read_unlabelled(options.texts, merged, validation_share=share, tokens_per_batch=tokens, seed=run.seed)
    split = dataclasses.replace(split, train=split.train[: options.train_rows])
    return encode_task(run, merged.folder, dataset, split, progress=progress)


def _calibrate(
    model: BertForSequenceClassification, task: Task, fp32: Tensor, *, rows: int, progress: bool
) -> tuple[str, dict[str, Range]]:
    """The percentile, and its ranges, whose int8 is nearest to `fp32` [R, C] on the validation part, or as good as that.

    `model` rounds then.
    """
    observed = observe_inputs(model, _some(task.train, range(min(rows, len(task.train.ids)))), progress=progress)
    numbers = spread_rows(range(len(task.validation.ids)), rows)
    judged, errors = _some(task.validation, numbers), {}
    for name, ranges in tqdm(observed.items(), desc="percentiles", disable=not progress, mininterval=0.5):
        fake_quantize(model, ranges)
        logits = compute_logits(model, judged, tokens_per_batch=CALIBRATION_TOKENS_PER_BATCH)
        errors[name] = (logits - fp32[numbers]).abs().mean().item()
    best = widest_of_the_best(errors)
    return best, observed[best]


def _some(part: Encoded, numbers: Sequence[int]) -> Encoded:
    return Encoded([part.ids[row] for row in numbers], [], [part.truncated[row] for row in numbers])


if __name__ == "__main__":
    command = functools.partial(tyro.cli, QuantizeAware, prog="python -m training.quantize_aware", description=__doc__)
    run_command(lambda: quantize_aware(command()))
