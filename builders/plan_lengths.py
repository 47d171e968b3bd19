"""Choose the lengths that texts are padded to, and the TensorRT profiles that follow, from the texts that will be served.

    python -m builders.plan_lengths texts.txt --tokenizer build/merged --buckets 4 --output build/lengths.json

Texts: one a line, or .jsonl or .csv with a "text". Give the plan to `python -m builders.build --engine tensorrt`, and its
lengths to the tokenizer step (docs/tensorrt.md). `--cost measured` times the graph of this model's shape here, `linear` counts
tokens; `--table` takes seconds a text that another machine measured, as {"16": 0.0011, "32": 0.0019, "64": 0.0041}.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import onnxruntime
import tyro

from builders.lengths import (
    Cost,
    LengthPlan,
    activation_bytes,
    candidate_lengths,
    choose_lengths,
    evaluate,
    fit_curve,
    measure_costs,
    plan_record,
)
from builders.standard_graph import standard_onnx
from contract.command import UsageError, run_command
from contract.files import read_json, write_json
from contract.tensors import ATTENTION_MASK, BUCKET_LENGTHS, INPUT_IDS, MAX_BATCH_SIZE
from training.batches import encode
from training.bert import BertForSequenceClassification
from training.bert_config import BertConfig
from training.pretrained import EMBEDDED, find_base, load_tokenizer
from training.readers import read_texts

TIMED_BATCH = 4
TIMED_LENGTHS = 6
TIMED_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class PlanLengths:
    """Choose the lengths that texts are padded to."""

    texts: Annotated[Path, tyro.conf.Positional]
    """Texts as they will be served: one a line, or .jsonl or .csv with a "text"."""
    output: Path | None = None
    """JSON file to write; without it the plan is only printed."""
    tokenizer: str = EMBEDDED
    """Whose tokens and whose shape: a checkpoint, minilm, a Hugging Face BERT folder, or a hub name."""
    max_length: int = 128
    """Tokens the model reads of one text, at least 3; longer texts are truncated, and the longest length is this one."""
    buckets: int = 4
    """Lengths to choose, at least 1: so many profiles the engine has."""
    multiple: int = 8
    """Lengths are multiples of this (the last may not be), at least 1: tensor cores work on eights."""
    cost: Literal["measured", "linear"] = "measured"
    """What a text costs: a + b T + c T^2 fitted to timings taken here, or T."""
    table: Path | None = None
    """JSON file of seconds a text by tokens, measured elsewhere; instead of timing here."""
    best_batch: int = 8
    """Batch that profiles are best at, texts."""

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise UsageError(f"--max-length is {self.max_length}; a text has at least 3 tokens, two of them special")
        for flag, value in (("--buckets", self.buckets), ("--multiple", self.multiple)):
            if value < 1:
                raise UsageError(f"{flag} is {value}; it must be at least 1")
        if not 1 <= self.best_batch <= MAX_BATCH_SIZE:
            raise UsageError(f"--best-batch is {self.best_batch}; it must be 1 to {MAX_BATCH_SIZE}")
        if self.table and self.cost != "measured":
            raise UsageError(f"--table holds measured costs, --cost is {self.cost}; leave one of them out")


def read_table(path: Path) -> dict[int, float]:
    """Seconds of a text by tokens. Raises UsageError for anything else."""
    value = read_json(path)
    try:
        return {int(tokens): float(seconds) for tokens, seconds in value.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(f'{path} is no cost table ({error}); it looks like {{"16": 0.0011, "64": 0.0041}}') from error


def time_model(config: BertConfig, lengths: Sequence[int]) -> dict[int, float]:
    """Seconds of one text by tokens, in batches, of a model of this shape with new weights, on this machine's CPU."""
    graph = standard_onnx(BertForSequenceClassification(config).eval())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)

    def run(tokens: int) -> float:
        ids = generator.integers(0, config.vocab_size, (TIMED_BATCH, tokens), dtype=np.int32)
        start = time.perf_counter()
        session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids)})
        return (time.perf_counter() - start) / TIMED_BATCH

    return measure_costs(run, lengths, rounds=TIMED_ROUNDS)


def plan_lengths(options: PlanLengths) -> None:
    """Run the command; see the module docstring."""
    texts = read_texts(options.texts)
    if not texts:
        raise UsageError(f"{options.texts} holds no texts")
    base = find_base(options.tokenizer)
    config = BertConfig.from_dict(read_json(base / "config.json"))
    if options.max_length > config.max_position_embeddings:
        raise UsageError(f"--max-length is {options.max_length}; {base} reads {config.max_position_embeddings}")
    tokenizer = load_tokenizer(base, max_length=options.max_length)
    lengths = encode(tokenizer, texts, [], progress="tokenizing").lengths
    candidates = candidate_lengths(options.max_length, options.multiple)
    cost = _cost(options, config)
    plan = choose_lengths(lengths, candidates, options.buckets, cost)
    print_plan(plan, evaluate(Counter(lengths), [options.max_length], cost), _today(lengths, options.max_length, cost))
    largest = activation_bytes(config, MAX_BATCH_SIZE, options.max_length, bytes_per_number=2)
    print(
        f"one engine with {len(plan.lengths)} profiles; in FP16 each execution context holds at most about "
        f"{largest / 2**20:,.0f} MiB beside the weights ({MAX_BATCH_SIZE} x {options.max_length} tokens)"
    )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, plan_record(plan, best_batch=options.best_batch, max_batch=MAX_BATCH_SIZE))
        print(f"wrote {options.output}")


def _cost(options: PlanLengths, config: BertConfig) -> Cost:
    if options.cost == "linear":
        return float
    if options.table:
        table = read_table(options.table)
    else:
        spread = np.linspace(min(16, options.max_length), options.max_length, TIMED_LENGTHS).round().astype(int)
        table = time_model(config, sorted(set(spread.tolist())))
    curve = fit_curve(table)
    print(
        f"a text of T tokens costs {curve.overhead * 1e3:.3g} + {curve.linear * 1e3:.3g} T + {curve.attention * 1e3:.3g} T^2 "
        f"ms, within {curve.scaled_error(table):.0%} of the timings"
    )
    return curve


def _today(lengths: Sequence[int], max_length: int, cost: Cost) -> LengthPlan:
    """What the lengths that the tokenizer step pads to without a plan mean for these texts."""
    bounds = [*(length for length in BUCKET_LENGTHS if length < max_length), max_length]
    return evaluate(Counter(lengths), bounds, cost)


def print_plan(plan: LengthPlan, single: LengthPlan, today: LengthPlan) -> None:
    """The plan beside one length for all, and beside the lengths of `contract.tensors.BUCKET_LENGTHS`."""
    print(f"{plan.texts:,} texts, {plan.tokens:,} tokens")
    print(f"{'':<14}{'lengths':>8}  {'padding':>8}  {'above no padding':>17}")
    for name, found in (("this plan", plan), ("one length", single), ("contract", today)):
        above = found.cost / found.unpadded_cost - 1
        print(f"{name:<14}{len(found.lengths):>8}  {found.waste:>8.1%}  {above:>17.1%}")
    print(f"lengths: {', '.join(map(str, plan.lengths))}")


if __name__ == "__main__":
    run_command(lambda: plan_lengths(tyro.cli(PlanLengths, prog="python -m builders.plan_lengths", description=__doc__)))
