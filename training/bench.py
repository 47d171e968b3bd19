"""Training speed: our strategies beside transformers' Trainer with PEFT, and LoRA beside full fine-tuning at every batch.

    python -m training.bench --data train-sample.csv.gz --output docs/measurements/training.json

The same base, texts, rank, modules and texts a batch for all. Each contestant trains one epoch a round, in turn, so that a
busy moment of the machine hits all of them; ratios are taken within a round, medians over the rounds. The ceilings, large
fp32 and bf16 matrix products, are measured in every round. The first rounds warm up and are not counted.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from contract.command import UsageError, run_command
from contract.files import read_json, write_json
from training.batches import Encoded, encode
from training.datasets import DatasetName, read_dataset
from training.evaluation import resolve_precision
from training.loop import Plan, Training
from training.lora import DEFAULT_TARGETS
from training.prefix import PrefixCache
from training.pretrained import EMBEDDED, find_base, load_model, load_tokenizer
from training.rivals import PeftTrainer, Settings, fast_settings
from training.strategies import StrategyName, apply_strategy, lowest_trained_layer

RANK, ALPHA, TARGETS = 8, 16.0, ("query", "value")
CEILING_SIZE = 2048
SWEEP_ROWS, SWEEP_TOKENS = (1, 4, 16, 64), 128
CACHED = "LoRA, last third, prefix cached, later epochs"
GOALS = {
    ("LoRA", "PEFT, usual"): 5.0,
    ("LoRA, dropout as PEFT usual", "PEFT, usual"): None,
    ("LoRA", "PEFT, best"): 1.5,
    ("LoRA on all linear layers", "PEFT, best"): None,
    ("LoRA", "full"): 1.35,
    ("LoRA, last third", "full"): 2.0,
    (CACHED, "full"): 3.5,
}
"""How many times faster the first should be than the second; None where nothing was promised."""

Epoch = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time our training beside transformers' Trainer with PEFT."""

    output: Path
    """JSON file to write."""
    data: Path | None = None
    """CSV of Stack Overflow questions, for texts of their lengths; the docstrings of the installed libraries when left out."""
    base: str = EMBEDDED
    """Base model: minilm, a Hugging Face BERT folder, or a hub name."""
    texts: int = 128
    """Texts of one epoch."""
    max_length: int = 256
    """Tokens read of a text."""
    batch_rows: int = 32
    """Texts in a batch, of every contestant."""
    rounds: int = 5
    """Rounds over all contestants, at least 3; one more comes first and is not counted."""
    show: bool = False
    """Print the tables of the file --output and stop."""

    def __post_init__(self) -> None:
        if self.rounds < 3:
            raise UsageError(f"--rounds is {self.rounds}; it must be at least 3")
        if self.texts < self.batch_rows or self.batch_rows < 1:
            raise UsageError(f"--texts is {self.texts}, --batch-rows {self.batch_rows}; need at least one text, and one batch")


class Ours:
    """One of our strategies on a base folder, one epoch at a time."""

    def __init__(
        self,
        base: Path,
        train: Encoded,
        name: StrategyName,
        *,
        batch_rows: int,
        dropout: float = 0.0,
        cache: Path | None = None,
        **options: Any,
    ) -> None:
        self._model, _ = load_model(
            base, num_labels=2, new_head=True, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
        )
        chosen: dict[str, Any] = {"rank": RANK, "alpha": ALPHA, "targets": TARGETS, "lora_dropout": dropout} | options
        apply_strategy(self._model, name, **chosen)
        self._train = train
        self._plan = Plan(
            epochs=1,
            learning_rate=1e-3,
            weight_decay=0.01,
            warmup_share=0.06,
            tokens_per_batch=batch_rows * max(train.lengths),
            batch_rows=batch_rows,
            dtype=resolve_precision("auto", torch.device("cpu")),
            seed=0,
        )
        started = time.perf_counter()
        self._cache = None if cache is None else self._fill(cache)
        self.fill_s = time.perf_counter() - started

    def _fill(self, path: Path) -> PrefixCache:
        return PrefixCache(
            self._model,
            self._train,
            path,
            layers=lowest_trained_layer(self._model),
            tokens_per_batch=self._plan.tokens_per_batch,
            dtype=self._plan.dtype,
        )

    def epoch_s(self) -> float:
        """Seconds of one epoch, without the validation (of one text)."""
        one = Encoded(self._train.ids[:1], self._train.labels[:1], [False])
        training = Training(self._model, self._train, one, self._plan, cache=self._cache, progress=False)
        return training.fit(lambda _: None)[0].seconds


def ceiling_gflops(dtype: torch.dtype) -> float:
    """The rate of one large matrix product, in 10^9 operations a second."""
    matrix = torch.rand(CEILING_SIZE, CEILING_SIZE).to(dtype)
    started = time.perf_counter()
    torch.mm(matrix, matrix)
    return 2e-9 * CEILING_SIZE**3 / (time.perf_counter() - started)


def alternate(contestants: dict[str, Epoch], rounds: int, title: str) -> dict[str, list[float]]:
    """Values by contestant, one a round, after one round that is not counted."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    with tqdm(total=(rounds + 1) * len(contestants), desc=title, unit="epochs", mininterval=0.5) as bar:
        for number in range(-1, rounds):
            for name, measure in contestants.items():
                value = measure()
                if number >= 0:
                    values[name].append(value)
                bar.update()
    return values


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """How many times faster, round by round: median, least and greatest."""
    ratios = [theirs / ours for theirs, ours in zip(slower, faster, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def measure_strategies(options: Bench, base: Path, train: Encoded, folder: Path) -> dict[str, Any]:
    """Our strategies and PEFT on the same texts, and the ceilings."""
    rows, third = options.batch_rows, _last_third(base)
    shared: dict[str, Any] = {"rank": RANK, "alpha": ALPHA, "batch_rows": rows}
    fast = fast_settings(resolve_precision("auto", torch.device("cpu")))
    rivals = {"PEFT, usual": Settings()} | {f"PEFT, {name}": settings for name, settings in fast.items()}
    cached = Ours(base, train, "lora", batch_rows=rows, layers=third, cache=folder / "prefix.bin")
    ours = {
        "full": Ours(base, train, "full", batch_rows=rows),
        "LoRA": Ours(base, train, "lora", batch_rows=rows),
        "LoRA, dropout as PEFT usual": Ours(base, train, "lora", batch_rows=rows, dropout=rivals["PEFT, usual"].dropout),
        "LoRA on all linear layers": Ours(base, train, "lora", batch_rows=rows, targets=DEFAULT_TARGETS),
        "LoRA, last third": Ours(base, train, "lora", batch_rows=rows, layers=third),
        CACHED: cached,
    }
    contestants: dict[str, Epoch] = {
        name: PeftTrainer(base, train, settings=settings, **shared).epoch_s for name, settings in rivals.items()
    }
    contestants |= {name: contestant.epoch_s for name, contestant in ours.items()}
    ceilings = {
        "ceiling fp32": lambda: ceiling_gflops(torch.float32),
        "ceiling bf16": lambda: ceiling_gflops(torch.bfloat16),
    }
    times = alternate(contestants | ceilings, options.rounds, "strategies")
    best = min((f"PEFT, {name}" for name in fast), key=lambda name: statistics.median(times[name]))
    speeds = {name: _spread([len(train.ids) / value for value in times[name]]) for name in contestants}
    return {
        "texts_per_s": speeds | {"filling that cache, once": _spread([len(train.ids) / cached.fill_s])},
        "ceiling_gflops": {name: _spread(times[name]) for name in ceilings},
        "best": best,
        "ratios": [
            {"faster": mine, "slower": theirs, "goal": goal}
            | ratio(times[best if theirs == "PEFT, best" else theirs], times[mine])
            for (mine, theirs), goal in GOALS.items()
        ],
    }


def measure_batches(options: Bench, base: Path) -> list[dict[str, Any]]:
    """LoRA beside full at several batch sizes, all texts of one length."""
    generator = random.Random(0)
    found = []
    for rows in SWEEP_ROWS:
        count = max(64, 2 * rows)
        ids = [[generator.randrange(1000, 30000) for _ in range(SWEEP_TOKENS)] for _ in range(count)]
        train = Encoded(ids, [row % 2 for row in range(count)], [False] * count)
        names: dict[str, StrategyName] = {"full": "full", "LoRA": "lora"}
        contestants = {name: Ours(base, train, strategy, batch_rows=rows).epoch_s for name, strategy in names.items()}
        times = alternate(contestants, options.rounds, f"batches of {rows}")
        found.append({"batch": rows, "tokens": SWEEP_TOKENS, **ratio(times["full"], times["LoRA"])})
    return found


def _last_third(base: Path) -> list[int]:
    model, _ = load_model(base, num_labels=2, new_head=True)
    layers = model.config.num_hidden_layers
    return list(range(layers - max(1, layers // 3), layers))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def markdown(measured: dict[str, Any]) -> str:
    """The tables for docs/training.md."""
    best = measured["strategies"]["best"].removeprefix("PEFT, ")
    lines = ["| trained | texts/s |", "|---|---|"]
    lines += [f"| {name} | {_show(entry, '.1f')} |" for name, entry in measured["strategies"]["texts_per_s"].items()]
    lines += ["", "| faster | than | times | goal |", "|---|---|---|---|"]
    for entry in measured["strategies"]["ratios"]:
        than = f"{entry['slower']} ({best})" if entry["slower"] == "PEFT, best" else entry["slower"]
        goal = "" if entry["goal"] is None else f"{entry['goal']:.2f}"
        lines.append(f"| {entry['faster']} | {than} | {_show(entry, '.2f')} | {goal} |")
    for entry in measured["batches"]:
        lines.append(f"| LoRA, batches of {entry['batch']} x {entry['tokens']} | full | {_show(entry, '.2f')} | 1.00 |")
    return "\n".join(lines)


def _show(entry: dict[str, float], form: str) -> str:
    return f"{entry['median']:{form}} ({entry['min']:{form}} to {entry['max']:{form}})"


def bench(options: Bench) -> None:
    """Run the command; see the module docstring."""
    if options.show:
        print(markdown(read_json(options.output)))
        return
    base = find_base(options.base)
    tokenizer = load_tokenizer(base, max_length=options.max_length)
    name: DatasetName = "docstrings" if options.data is None else "stackoverflow"
    dataset = read_dataset(name, data=options.data, text=None, label=None, drop_empty=True, seed=0)
    rows = random.Random(0).sample(range(len(dataset.texts)), min(options.texts, len(dataset.texts)))
    train = encode(tokenizer, [dataset.texts[row] for row in rows], [dataset.labels[row] % 2 for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        strategies = measure_strategies(options, base, train, Path(folder))
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "base": options.base,
        "data": name,
        "texts": len(rows),
        "mean_tokens": sum(train.lengths) / len(rows),
        "max_length": options.max_length,
        "batch_rows": options.batch_rows,
        "rank": RANK,
        "targets": list(TARGETS),
        "dtype": str(resolve_precision("auto", torch.device("cpu"))).removeprefix("torch."),
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "strategies": strategies,
        "batches": measure_batches(options, base),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, measured)
    ceilings = ", ".join(f"{name} {entry['median']:.0f}" for name, entry in strategies["ceiling_gflops"].items())
    print(f"{markdown(measured)}\n\n{ceilings} GFLOP/s; wrote {options.output}")


if __name__ == "__main__":
    run_command(lambda: bench(tyro.cli(Bench, prog="python -m training.bench", description=__doc__)))
