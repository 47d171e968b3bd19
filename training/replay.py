"""Run a published fine-tuning configuration again, or count its parameters; the table of them is `training.recipes`.

    python -m training.replay --list
    python -m training.replay --count-only                                  # all of them; needs no weights and no data
    python -m training.replay stackoverflow-lora-r8 --data train-sample.csv --base models/bert-base-uncased

A recipe whose base model cannot be had runs on the embedded MiniLM and says so. It runs in one process, never under
torchrun. `training.compare` runs several.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from contract.command import UsageError, run_command
from contract.files import read_json
from training.assemble import read_data
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.evaluation import Precision
from training.lora import check_rank, count_parameters
from training.options import Finetune
from training.pretrained import EMBEDDED, WEIGHTS_FILE, find_base
from training.published import Recipe, show_setting
from training.recipes import RECIPES, find_recipe
from training.report import format_share, markdown_table, read_run, single
from training.strategies import apply_strategy
from training.tracking import TrackerName

OUTPUT = Path("build/replay")
CLEANING = ("sample_frac", "class_threshold")
"""Options that only the recipes of complaints have."""
_OVERRIDES = (
    *CLEANING,
    "train_rows",
    "epochs",
    "max_length",
    "batch_rows",
    "learning_rate",
    "precision",
    "device",
    "threads",
    "resume",
    "track",
)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Run one published configuration again, or count its parameters."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Recipe or alias; see --list. With --count-only it may be left out, or be `all`."""
    list: bool = False
    """Show the recipes and stop."""
    count_only: bool = False
    """Print trainable and total parameters beside the published figures and stop."""
    data: Path | None = None
    """The recipe's data set: a file, or for imdb the folder aclImdb too."""
    base: str | None = None
    """Base model: a Hugging Face BERT folder or a hub name. Left out, the recipe's own from the hub, else the embedded one."""
    output: Path | None = None
    """Folder to write; build/replay/NAME when left out."""
    sample_frac: float | None = None
    """Share of the complaints to draw at random, instead of the published 0.1: of a small file, 1."""
    class_threshold: int | None = None
    """Complaints that a product must have to be a class, instead of the published 1,000."""
    train_rows: int | None = None
    """Train on at most this many texts, drawn at random."""
    test_rows: int | None = None
    """Evaluate on about this many texts at most, and choose the best epoch on half as many."""
    epochs: int | None = None
    """Passes over the training part, instead of the published number."""
    max_length: int | None = None
    """Tokens read of a text, instead of the published number."""
    batch_rows: int | None = None
    """Texts in a batch, instead of the published number."""
    learning_rate: float | None = None
    """Peak learning rate, instead of the published one."""
    rank: float | None = None
    """LoRA rank, an integer of at least 1, instead of the published one."""
    precision: Precision | None = None
    """Precision of the training, instead of the published one; auto takes bf16 where the hardware has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    resume: bool = False
    """Continue the interrupted run of the output folder."""
    track: TrackerName = "none"
    """Also report to tensorboard, wandb or mlflow, as training.finetune does."""

    def __post_init__(self) -> None:
        if self.rank is not None:
            try:
                check_rank(int(self.rank) if self.rank.is_integer() else self.rank)  # type: ignore[arg-type]
            except ValueError as error:
                raise UsageError(f"--rank: {error}; to train a share of the weights, run imdb-masked") from error
        if self.test_rows is not None and self.test_rows < 2:
            raise UsageError(f"--test-rows is {self.test_rows}; it must be at least 2")
        if not (self.name or self.list or self.count_only):
            raise UsageError("name a recipe, or pass --count-only for all of them; python -m training.replay --list shows them")


def count(recipe: Recipe) -> tuple[int, int]:
    """(trainable, total) parameters of a recipe as published. No memory is taken: the model is on the meta device."""
    settings = Finetune(output=OUTPUT, **recipe.settings)
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig.from_dict({**recipe.architecture}, num_labels=recipe.num_labels))
    apply_strategy(
        model,
        settings.strategy,
        k=settings.k,
        mask_share=settings.mask_share,
        rank=settings.rank,
        alpha=settings.alpha,
        lora_dropout=settings.lora_dropout,
        targets=settings.targets,
        layers=settings.layers,
        rslora=settings.rslora,
        seed=settings.seed,
    )
    return count_parameters(model)


def count_table(recipes: tuple[Recipe, ...]) -> str:
    """The counted parameters as a Markdown table, each count beside the published one, then the reasons for differences."""
    rows, reasons = [], []
    for recipe in recipes:
        trainable, total = count(recipe)
        published = recipe.published
        rows.append(
            [
                recipe.name,
                _number(published.trainable),
                f"{trainable:,}",
                _number(published.total),
                f"{total:,}",
                format_share(trainable / total),
            ]
        )
        if recipe.remark:
            reasons.append(f"{recipe.name}: {recipe.remark}")
    header = ["recipe", "trainable, published", "trainable", "total, published", "total", "relative"]
    return "\n".join([markdown_table(header, rows, right=header[1:]), "", *reasons]).rstrip()


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def list_recipes() -> str:
    """Name, alias, and what each recipe replays."""
    return "\n".join(f"{recipe.name:<34}{recipe.alias:<22}{recipe.replays}" for recipe in RECIPES)


def choose_base(recipe: Recipe, base: str | None) -> tuple[str, Path]:
    """(name, folder) of the base to run on: the one asked for; else the recipe's own; else the embedded one, said aloud."""
    if base is not None:
        return base, find_base(base)
    try:
        folder = find_base(recipe.base)
        if recipe.strategy == "scratch" or (folder / WEIGHTS_FILE).exists():
            return recipe.base, folder
        reason = f"{folder} has no {WEIGHTS_FILE}"
    except UsageError as error:
        reason = str(error).splitlines()[0]
    print(f"base: {EMBEDDED} instead of {recipe.base}, since {reason}. Name a folder that has it with --base.")
    return EMBEDDED, find_base(EMBEDDED)


def settings_for(recipe: Recipe, options: Replay, *, base: str, folder: Path) -> dict[str, Any]:
    """The fields of `Finetune` for this base and these options: published, then fitted to the base, then overridden.

    Raises:
        UsageError: a rank for a recipe without LoRA, cleaning for one without complaints, or data that cannot be read.
    """
    if options.rank is not None and recipe.strategy != "lora":
        raise UsageError(f"--rank is {options.rank:g}, but {recipe.name} has no LoRA: its strategy is {recipe.strategy}")
    cleaning = [name for name in CLEANING if getattr(options, name) is not None and recipe.dataset != "complaints"]
    if cleaning:
        raise UsageError(f"--{cleaning[0].replace('_', '-')} is for complaints, but {recipe.name} reads {recipe.dataset}")
    settings = recipe.settings | fitted(recipe, folder)
    settings |= {"base": base, "data": options.data, "output": options.output or OUTPUT / recipe.name}
    settings |= {name: value for name in _OVERRIDES if (value := getattr(options, name)) is not None}
    if options.rank is not None:
        settings["rank"] = int(options.rank)
    settings["tokens_per_batch"] = settings["batch_rows"] * settings["max_length"]
    return settings | _shares(recipe, options, settings)


def fitted(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a base of other sizes than the published one changes: tokens, and which layers."""
    if recipe.strategy == "scratch":  # takes the tokenizer alone
        return {}
    config, settings = read_json(folder / "config.json"), recipe.settings
    layers = config.get("num_hidden_layers", 12)
    changes: dict[str, Any] = {"max_length": min(settings["max_length"], config.get("max_position_embeddings", 512))}
    if settings.get("layers"):
        published = recipe.architecture.get("num_hidden_layers", 12)
        changes["layers"] = _last_layers(len(settings["layers"]), of=published, now=layers)
    if "k" in settings:
        changes["k"] = min(settings["k"], layers)
    return changes


def _last_layers(number: int, *, of: int, now: int) -> tuple[int, ...]:
    """The same share of a stack of `now` layers that the last `number` are of a stack of `of`."""
    kept = max(1, round(number * now / of))
    return tuple(range(now - kept, now))


def _shares(recipe: Recipe, options: Replay, settings: Mapping[str, Any]) -> dict[str, float]:
    """Test and validation shares that keep the caps on their rows; reads the data set once to learn its size."""
    cap = options.test_rows or recipe.test_rows
    if cap is None:
        return {}
    given = Finetune(**settings)
    rows = len(read_data(given).texts)
    test = min(given.test_share, cap / rows)
    return {"test_share": test, "validation_share": min(given.validation_share, test / 2)}


def refuse_many_processes() -> None:
    """Raise `UsageError` under torchrun: each process would choose the base, read the data and print for itself."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count.isdigit() and int(count) > 1:
        raise UsageError(
            f"recipes run in one process, but WORLD_SIZE is {count}; for several, give training.finetune the options "
            "of the recipe, which training/recipes.py holds"
        )


def replay(options: Replay) -> None:
    """Run the recipe that `options` name, and print published and obtained figures."""
    from training.finetune import finetune  # heavy: counting parameters needs none of it

    refuse_many_processes()
    recipe = find_recipe(options.name or "")
    print(f"{recipe.name}: {recipe.replays}")
    if recipe.remark:
        print(recipe.remark)
    base, folder = choose_base(recipe, options.base)
    settings = Finetune(**settings_for(recipe, options, base=base, folder=folder))
    chosen = (f"{name} {show_setting(getattr(settings, name))}" for name in recipe.left_open)
    print("not in the source, chosen here: " + (", ".join(chosen) or "nothing"))
    differences = recipe.differences(settings.to_json())
    for line in (*recipe.otherwise, *differences):
        print(f"differs: {line}")
    finetune(settings)
    run = read_run(settings.output, recipe=recipe)
    for line in run.differences:
        if line not in differences:  # the rows are known now
            print(f"differs: {line}")
    print(single(run))


def main(options: Replay) -> None:
    """The command; see the module docstring."""
    if options.list:
        print(list_recipes())
    elif options.count_only:
        print(count_table(RECIPES if options.name in {None, "all"} else (find_recipe(options.name or ""),)))
    else:
        replay(options)


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Replay, prog="python -m training.replay", description=__doc__)))
