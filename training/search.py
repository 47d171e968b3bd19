"""Search LoRA's learning rate, rank, alpha, modules and layers for the lowest validation loss, with Optuna.

    python -m training.search --output build/search --trials 20
    python -m training.search --output build/imdb --ranks 4 8 --target-sets qv all --dataset imdb --data imdb.csv.gz

Every trial is a real run of `training.finetune` with all its other options. The test part is never even evaluated: the
validation part alone chooses. Bad trials are pruned after an epoch. OUTPUT keeps the search: the same command continues
it up to --trials in all, several of them at once share it, and Ctrl-C loses only the trial that runs.

    OUTPUT/search.csv, search.html    the trials, best first; history, importances, loss against learning rate
    OUTPUT/trials.log                 Optuna's journal
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Fixed

from contract.command import Failure, UsageError, run_command
from contract.files import read_json, write_json
from training.bert_config import BertConfig
from training.finetune import finetune
from training.lora import DEFAULT_TARGETS, check_rank
from training.options import Finetune
from training.pretrained import find_base
from training.strategies import StrategyName
from training.tracking import TrackerName

TargetSet = Literal["qv", "qkv", "attention", "all"]
LayerSet = Literal["all", "last-half", "last-third"]

TARGETS: dict[TargetSet, tuple[str, ...]] = {
    "qv": ("query", "value"),
    "qkv": ("query", "key", "value"),
    "attention": ("query", "key", "value", "attention.output.dense"),
    "all": ("query", "key", "value", "dense"),
}
LAYERS: dict[LayerSet, float] = {"all": 1.0, "last-half": 1 / 2, "last-third": 1 / 3}
"""The share of the encoder layers, counted from the head side and rounded up."""

CONFIGURATION_FILE = "search.json"
_FREE = ("output", "trials", "threads", "device", "save_every_s")
"""Options that may differ when a search is continued."""


@dataclass(frozen=True, kw_only=True)
class Search(Finetune):
    """Search LoRA's options for the lowest validation loss; the other options are those of every trial."""

    output: Path
    """Folder of the search; one that exists is continued."""
    trials: int = 20
    """Trials in all, those of earlier and of parallel calls included."""
    learning_rates: tuple[float, float] = (1e-4, 5e-3)
    """Lowest and highest learning rate, drawn on a log scale."""
    ranks: tuple[int, ...] = (2, 4, 8, 16)
    """Ranks to choose from."""
    alphas: tuple[float, ...] = (8.0, 16.0, 32.0)
    """Alphas to choose from."""
    target_sets: tuple[TargetSet, ...] = ("qv", "qkv", "attention", "all")
    """Modules to choose from. qv, qkv: query, (key,) value. attention: those and its output. all: every linear layer."""
    layer_sets: tuple[LayerSet, ...] = ("all", "last-half")
    """Encoder layers to choose from, those of the last half or third counted from the head side."""
    prune: bool = True
    """End a trial after an epoch whose validation loss is above the median of the others at that epoch."""

    strategy: Fixed[StrategyName] = "lora"
    learning_rate: Fixed[float] = 1e-3
    rank: Fixed[int] = 8
    alpha: Fixed[float] = 16.0
    targets: Fixed[tuple[str, ...]] = DEFAULT_TARGETS
    layers: Fixed[tuple[int, ...] | None] = None
    k: Fixed[int] = 1
    mask_share: Fixed[float] = 0.2
    scratch_size: Fixed[tuple[int, int, int, int]] = (256, 4, 4, 512)
    cache_prefix: Fixed[bool] = False
    resume: Fixed[bool] = False
    track: Fixed[TrackerName] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise UsageError(f"--trials is {self.trials}; it must be at least 1")
        low, high = self.learning_rates
        if not 0 < low < high < math.inf:
            raise UsageError(f"--learning-rates is {low} {high}; it must be two numbers, 0 < lowest < highest")
        for rank in self.ranks:
            try:
                check_rank(rank)
            except ValueError as error:
                raise UsageError(f"--ranks: {error}") from error
        if any(not 0 < alpha < math.inf for alpha in self.alphas):
            raise UsageError(f"--alphas is {self.alphas}; each must be above 0")
        for name in ("ranks", "alphas", "target_sets", "layer_sets"):
            choices = getattr(self, name)
            if not choices or len(set(choices)) < len(choices):
                raise UsageError(f"--{name.replace('_', '-')} is {choices}; it must be at least one choice, each given once")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("torchrun splits one training; for a faster search run the same command several times instead")

    def identity(self) -> dict[str, Any]:
        """What must stay the same for trials to be comparable, as JSON gives it back."""
        values = {key: value for key, value in self.to_json().items() if key not in _FREE}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def trial_options(options: Search, chosen: dict[str, Any], output: Path) -> Finetune:
    """The options of the trial that has drawn `chosen`."""
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(Finetune)}
    drawn = {
        "learning_rate": chosen["learning_rate"],
        "rank": chosen["rank"],
        "alpha": chosen["alpha"],
        "targets": TARGETS[chosen["targets"]],
        "layers": last_layers(options.base, chosen["layers"]),
        "output": output,
    }
    return Finetune(**(shared | drawn))


def last_layers(base: str, layer_set: LayerSet) -> tuple[int, ...] | None:
    """The encoder layers of `base` that `layer_set` names; None for all."""
    if layer_set == "all":
        return None
    count = BertConfig.from_dict(read_json(find_base(base) / "config.json")).num_hidden_layers
    return tuple(range(count - math.ceil(count * LAYERS[layer_set]), count))


def command_of(options: Finetune) -> str:
    """The command line that gives `options`: what differs from the defaults, quoted for a shell."""
    words = ["python", "-m", "training.finetune"]
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def search(options: Search, train: Callable[..., None] = finetune) -> None:
    """Run trials until there are `options.trials`, then print and write the report; see the module docstring.

    Args:
        train: called with the options of a trial and `on_epoch`.

    Raises:
        UsageError: options or data that cannot be used, a folder that holds another search, or Optuna is not installed.
        Failure: no trial ended well.
    """
    try:
        from training.search_report import report
        from training.trials import Trials
    except ImportError as error:
        raise UsageError(
            f"the search needs optuna and matplotlib ({error}): "
            "python -m pip install --constraint constraints.txt optuna matplotlib"
        ) from error
    find_base(options.base)  # before anything is written
    _claim_folder(options)
    trials = Trials(options)
    try:
        trials.run(lambda chosen, output, on_epoch: train(trial_options(options, chosen, output), on_epoch=on_epoch))
    except (KeyboardInterrupt, SystemExit):  # a signal inside finetune comes out as SystemExit
        print(f"interrupted; the same command continues up to {options.trials} trials")
        if trials.finished:
            report(trials, options.output, best_command(options, trials.finished[0].params))
        raise
    if not trials.finished:
        raise Failure(f"none of {len(trials.rows())} trials ended well; the last one: {trials.rows()[-1]['reason']}")
    report(trials, options.output, best_command(options, trials.finished[0].params))


def best_command(options: Search, chosen: dict[str, Any]) -> str:
    """The command that trains with the parameters `chosen` once more, writes the checkpoint and evaluates the test part."""
    return command_of(trial_options(options, chosen, options.output / "best"))


def _claim_folder(options: Search) -> None:
    path = options.output / CONFIGURATION_FILE
    if not path.exists():
        if options.output.exists() and any(options.output.iterdir()):
            raise UsageError(f"{options.output} exists and holds no search; name another --output")
        options.output.mkdir(parents=True, exist_ok=True)
        write_json(path, options.identity())
    before, now = read_json(path), options.identity()
    different = sorted(key for key in now if before.get(key) != now[key])
    if different:
        changes = "; ".join(f"--{key.replace('_', '-')} was {before.get(key)}, is {now[key]}" for key in different)
        raise UsageError(f"{options.output} holds a search with other options: {changes}. Use the same, or another --output")


if __name__ == "__main__":
    run_command(
        lambda: search(
            tyro.cli(Search, prog="python -m training.search", description=__doc__, config=(tyro.conf.SuppressFixed,))
        )
    )
