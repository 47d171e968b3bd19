"""The options of a training run, and what is wrong with them.

Read by `training.finetune`; `training.replay`, `training.compare` and `training.search` make them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from contract.command import UsageError
from training.complaints import Cleaning
from training.datasets import DatasetName
from training.evaluation import Precision
from training.lora import DEFAULT_TARGETS, check_rank
from training.masked import check_share
from training.pretrained import EMBEDDED, TruncationSide
from training.split import check_shares
from training.strategies import StrategyName
from training.tracking import TrackerName


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune BERT and write a checkpoint folder."""

    output: Path
    """Folder to write; it must not exist."""
    dataset: DatasetName = "docstrings"
    """docstrings: of the installed libraries. stackoverflow, stackoverflow5: Kaggle's closed questions, in 2 or 5 classes.
    imdb, yelp: reviews. complaints: of US consumers. csv: any CSV."""
    data: Path | None = None
    """CSV file, plain or .gz, or imdb's folder; docstrings need none."""
    text: str | None = None
    """Column of the texts, for csv."""
    label: str | None = None
    """Column of the labels, for csv."""
    drop_empty: bool = False
    """Leave out rows with an empty text or label instead of stopping at them."""
    class_threshold: int = 30
    """Complaints that a product must have to be a class, for complaints (published: 1000 of all complaints)."""
    sample_frac: float = 1.0
    """Share of the complaints to draw at random, for complaints (published: 0.1)."""
    min_text_length: int = 10
    """Words that a cleaned complaint must have, for complaints."""
    train_rows: int | None = None
    """Train on at most this many rows, drawn at random."""
    validation_share: float = 0.1
    """Share of the rows that chooses the best epoch."""
    test_share: float = 0.2
    """Share of the rows that is evaluated once at the end."""
    tabular: bool = False
    """Also read the data set's numeric features (stackoverflow and stackoverflow5 have some)."""
    log_features: bool = False
    """Read sign(x) log(1 + |x|) of each feature x: for counts, sizes and ages, whose tails are long."""
    base: str = EMBEDDED
    """Base model: minilm (embedded), a Hugging Face BERT folder, or a hub name."""
    keep_head: bool = False
    """Begin with the base's own classification head, whose id2label must name the labels of the data; with the strategy none
    a classifier from elsewhere is evaluated and taken over as it is."""
    max_positions: int | None = None
    """Keep only the first so many position embeddings: a smaller model that reads no longer texts."""
    heads: tuple[int, ...] | None = None
    """Attention heads of each layer, where they are not those of the base."""
    strategy: StrategyName = "lora"
    """What trains. none: nothing, only evaluate. head. first, last: the head and K encoder layers at the input or the head
    side. lora: the head and low-rank updates. masked: the head and a share of each weight matrix. full: everything.
    scratch: everything, from random weights."""
    k: int = 1
    """Encoder layers that first and last train."""
    mask_share: float = 0.2
    """Share of each weight matrix that masked trains."""
    scratch_size: tuple[int, int, int, int] = (256, 4, 4, 512)
    """Hidden size, layers, attention heads, feed-forward size of scratch; the base then gives the tokenizer alone."""
    rank: int = 8
    """LoRA rank r: the inner dimension of the update, an integer of at least 1."""
    alpha: float = 16.0
    """LoRA alpha; the update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead: rank-stabilised LoRA."""
    lora_dropout: float = 0.0
    """Dropout before lora_A, in [0, 1). On a CPU drawing it costs a third of the training time."""
    targets: tuple[str, ...] = DEFAULT_TARGETS
    """Linear layers to adapt: ends of module paths (query fits every ...self.query) or shell patterns over whole paths."""
    layers: tuple[int, ...] | None = None
    """Encoder layers to adapt, 0 next to the input; all of them when left out."""
    dropout: float = 0.0
    """Dropout of the base model while training; LoRA has its own."""
    max_length: int = 128
    """Tokens read of a text; what is longer is truncated, in training and in serving alike."""
    truncation_side: TruncationSide = "right"
    """The end of a longer text that is cut off: right keeps its beginning; left keeps its end, where reviews judge."""
    epochs: int = 2
    """Passes over the training part."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's decay of matrices; vectors are not decayed."""
    warmup_share: float = 0.06
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["linear", "constant"] = "linear"
    """The learning rate after the warm-up: falling linearly to 0, or constant."""
    tokens_per_batch: int = 2048
    """Budget of one batch, over all processes: texts x longest text."""
    batch_rows: int | None = None
    """At most this many texts in a batch."""
    cache_prefix: bool = False
    """Compute the layers below the lowest trained one once, and keep what they give on the disk (tokens x hidden size x 2
    bytes in bf16): later epochs start from there. Their dropout is off."""
    precision: Precision = "auto"
    """auto takes bf16 autocast where the hardware has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    seed: int = 0
    """Of the split, the initial weights, the order of the texts and dropout."""
    resume: bool = False
    """Continue the interrupted run of this output, to the same bits; start it when there is none."""
    save_every_s: float = 300
    """Seconds between two savings of the run's state; it is saved after every epoch and on SIGTERM and SIGINT too."""
    track: TrackerName = "none"
    """Also report to tensorboard, wandb or mlflow; metrics.jsonl is always written."""

    def __post_init__(self) -> None:
        if self.output.name in {"", ".."}:
            raise UsageError(f"--output is {self.output}; name a folder to make")
        try:
            name = "rank"
            check_rank(self.rank)
            name = "mask-share"
            check_share(self.mask_share)
        except ValueError as error:
            raise UsageError(f"--{name}: {error}") from error
        if self.max_length < 3:  # the tokenizer would not truncate at all below 2
            raise UsageError(f"--max-length is {self.max_length}; it must be at least 3: [CLS], one token of the text, [SEP]")
        self._check_numbers()
        _ = self.cleaning
        check_shares(self.validation_share, self.test_share)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device is cuda, but torch sees no CUDA device; use cpu, or auto")
        if self.log_features and not self.tabular:
            raise UsageError("--log-features changes the numeric features, which only --tabular reads; give both or neither")
        if self.keep_head and (self.strategy == "scratch" or self.tabular):
            raise UsageError(
                f"--keep-head begins with the base's head, which {'--tabular' if self.tabular else 'scratch'} has no use for"
            )
        if self.cache_prefix and self.strategy == "none":
            raise UsageError("--cache-prefix serves later epochs, and the strategy none trains none")
        if self.layers is not None and self.strategy != "lora":
            raise UsageError(f"--layers chooses where LoRA goes; the strategy {self.strategy} takes --k, or nothing")
        if self.heads is not None and self.strategy == "scratch":
            raise UsageError("--heads replaces the heads of a loaded base; scratch takes its own from --scratch-size")

    @property
    def cleaning(self) -> Cleaning:
        """How complaints are cleaned."""
        return Cleaning(
            sample_frac=self.sample_frac, class_threshold=self.class_threshold, min_text_length=self.min_text_length
        )

    def to_json(self) -> dict[str, Any]:
        """The options as written to `run.json`."""

        def plain(value: Any) -> Any:
            """As JSON gives it back: a continued run is compared with what was written."""
            return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value

        return {key: plain(value) for key, value in dataclasses.asdict(self).items()}

    def beside_defaults(self, written: dict[str, Any]) -> dict[str, Any]:
        """What another run wrote down, completed: an option that did not exist then had its default."""
        return Finetune(output=self.output).to_json() | written

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Finetune:
        """The options that `to_json` wrote, but for the device: what a run was trained on need not be here."""
        paths = {name: Path(values[name]) for name in ("output", "data") if values.get(name)}
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**(values | paths | tuples | {"device": "cpu"}))

    def _check_numbers(self) -> None:
        if not 0 <= self.seed < 2**32 or self.threads < 0:
            raise UsageError(f"--seed {self.seed} must be in [0, 2^32), --threads {self.threads} at least 0")
        whole = {
            "epochs": self.epochs,
            "tokens-per-batch": self.tokens_per_batch,
            "k": self.k,
            "train-rows": self.train_rows,
            "batch-rows": self.batch_rows,
            "max-positions": self.max_positions,
        }
        for name, number in whole.items():
            if number is not None and number < 1:
                raise UsageError(f"--{name} is {number}; it must be at least 1")
        shares = {"lora-dropout": self.lora_dropout, "dropout": self.dropout, "warmup-share": self.warmup_share}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise UsageError(f"--{name} is {share}; it must be in [0, 1)")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf and self.save_every_s > 0):
            raise UsageError(
                f"--learning-rate {self.learning_rate} and --save-every-s {self.save_every_s} must be above 0, "
                f"--weight-decay {self.weight_decay} not below 0, and all of them numbers"
            )
        if not math.isfinite(self.alpha):
            raise UsageError(f"--alpha is {self.alpha}; it must be a finite number")
