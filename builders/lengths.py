"""Which lengths texts are padded to: the choice that costs least, by dynamic programming over measured costs.

A text of n tokens is padded to the smallest chosen length that holds it. More lengths mean less padding, and each is one more
profile of a TensorRT engine and one more queue in which requests wait for company. So the number is given and the lengths are
chosen. For rising candidates c(1) < ... < c(m), the least cost of all texts up to c(j) with k lengths, the last one c(j), is

    best(k, j) = min over i < j of best(k - 1, i) + cost(c(j)) x texts in (c(i), c(j)]

K lengths of m candidates take O(K m^2) steps. `tests/builders/test_lengths.py` compares it with all subsets.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import nnls

from builders.plan_settings import padded_profiles
from contract.command import UsageError
from training.bert_config import BertConfig

Cost = Callable[[int], float]
"""Tokens of a padded text -> what computing it costs, in any unit."""


@dataclass(frozen=True)
class Curve:
    """Seconds of one text as a + b T + c T^2: overhead, linear layers, attention. No term is negative."""

    overhead: float
    linear: float
    attention: float

    def __call__(self, tokens: int) -> float:
        """Seconds of a text of so many tokens."""
        return self.overhead + self.linear * tokens + self.attention * tokens**2

    def scaled_error(self, table: Mapping[int, float]) -> float:
        """The largest relative distance from the measured points."""
        return max(abs(self(tokens) / seconds - 1) for tokens, seconds in table.items())


@dataclass(frozen=True)
class LengthPlan:
    """The chosen lengths and what they mean for the texts that they were chosen for."""

    lengths: list[int]
    texts: int
    tokens: int
    """Real ones, of all texts."""
    padded_tokens: int
    """Computed, padding included."""
    cost: float
    """Of all texts, in the unit of the cost."""
    unpadded_cost: float
    """Had every text its own length: what no plan is below."""

    @property
    def waste(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.tokens / self.padded_tokens


def fit_curve(table: Mapping[int, float]) -> Curve:
    """The curve through measured seconds of a text by tokens, relative errors squared. Raises UsageError for too few points."""
    if len(table) < 3 or any(tokens < 1 or not (math.isfinite(seconds) and seconds > 0) for tokens, seconds in table.items()):
        raise UsageError(f"a cost table needs three lengths or more with seconds above 0; this one is {dict(table)}")
    tokens = np.array(list(table), dtype=np.float64)
    seconds = np.array(list(table.values()))
    terms = np.stack([np.ones_like(tokens), tokens, tokens**2], axis=1) / seconds[:, None]
    scale = terms.max(axis=0)  # the columns differ by six orders of magnitude
    found, _ = nnls(terms / scale, np.ones_like(seconds))
    overhead, linear, attention = (found / scale).tolist()
    return Curve(overhead, linear, attention)


def candidate_lengths(longest: int, multiple: int) -> list[int]:
    """Multiples of `multiple` up to the longest, and the longest itself, which must be among the chosen."""
    return sorted({*range(multiple, longest + 1, multiple), longest})


def choose_lengths(lengths: Iterable[int], candidates: Sequence[int], count: int, cost: Cost) -> LengthPlan:
    """The at most `count` candidates that hold all texts at the least cost, the longest candidate among them.

    Args:
        lengths: tokens of each text, 1 to the longest candidate.
        candidates: rising.
        count: of lengths to choose, at least 1.
        cost: of one text by its padded length.

    Raises:
        UsageError: no texts, a text longer than every candidate, or nothing to choose from.
    """
    histogram = Counter(lengths)
    _check(histogram, candidates, count)
    below = [sum(texts for length, texts in histogram.items() if length <= candidate) for candidate in candidates]
    costs = [cost(candidate) for candidate in candidates]
    best = [costs[j] * below[j] for j in range(len(candidates))]  # one length
    previous: list[list[int]] = []
    for _ in range(min(count, len(candidates)) - 1):
        step = [_extend(best, costs, below, j) for j in range(len(candidates))]
        previous.append([i for _, i in step])
        best = [value for value, _ in step]
    return evaluate(histogram, _trace(candidates, previous), cost)


def _extend(best: list[float], costs: list[float], below: list[int], j: int) -> tuple[float, int]:
    """(least cost up to candidate j with one length more, the candidate before it); j itself where one more does not help."""
    options = [(best[i] + costs[j] * (below[j] - below[i]), i) for i in range(j)]
    return min([(best[j], j), *options])


def _trace(candidates: Sequence[int], previous: list[list[int]]) -> list[int]:
    """The chosen candidates, rising."""
    j = len(candidates) - 1
    chosen = [j]
    for step in reversed(previous):
        if step[j] != j:
            j = step[j]
            chosen.append(j)
    return [candidates[j] for j in reversed(chosen)]


def evaluate(lengths: Mapping[int, int], chosen: Sequence[int], cost: Cost) -> LengthPlan:
    """What rising lengths mean for texts, given as tokens -> number of texts. The last must hold the longest text."""
    padded: Counter[int] = Counter()
    for length, texts in lengths.items():
        padded[next(bound for bound in chosen if bound >= length)] += texts
    return LengthPlan(
        lengths=list(chosen),
        texts=sum(lengths.values()),
        tokens=sum(length * texts for length, texts in lengths.items()),
        padded_tokens=sum(bound * texts for bound, texts in padded.items()),
        cost=sum(cost(bound) * texts for bound, texts in padded.items()),
        unpadded_cost=sum(cost(length) * texts for length, texts in lengths.items()),
    )


def _check(histogram: Mapping[int, int], candidates: Sequence[int], count: int) -> None:
    if not histogram:
        raise UsageError("there are no texts to plan lengths for")
    if not candidates or any(first >= second for first, second in pairwise(candidates)):
        raise UsageError(f"the candidate lengths are {list(candidates)}; wanted rising ones")
    if min(histogram) < 1 or max(histogram) > candidates[-1]:
        raise UsageError(
            f"texts have {min(histogram)} to {max(histogram)} tokens; the candidates reach from 1 to {candidates[-1]}"
        )
    if count < 1:
        raise UsageError(f"--buckets is {count}; it must be at least 1")


def measure_costs(run: Callable[[int], float], lengths: Sequence[int], *, rounds: int) -> dict[int, float]:
    """Seconds of one text by tokens: the median of `rounds` calls a length, taken in turn after a first that does not count."""
    timings: dict[int, list[float]] = {length: [] for length in lengths}
    for number in range(rounds + 1):
        for length in lengths:
            seconds = run(length)
            if number:
                timings[length].append(seconds)
    return {length: statistics.median(seconds) for length, seconds in timings.items()}


def activation_bytes(config: BertConfig, batch: int, tokens: int, bytes_per_number: int) -> int:
    """An upper estimate of what one execution context holds beside the weights, for its largest shape.

    The widest moments of a layer: the feed-forward's input and output with both sides of the GELU, and Q, K, V with scores and
    probabilities in FP32. TensorRT reuses memory between layers, so layers do not add up.
    """
    width, heads = config.hidden_size, max(config.layer_heads)
    feed_forward = batch * tokens * (2 * width + 2 * config.intermediate_size) * bytes_per_number
    attention = batch * tokens * 5 * width * bytes_per_number + 2 * batch * heads * tokens**2 * 4
    return max(feed_forward, attention)


def plan_record(plan: LengthPlan, *, best_batch: int, max_batch: int) -> dict[str, Any]:
    """The plan as JSON: what `--tensorrt.lengths` of a build reads, and the profiles that follow."""
    profiles = padded_profiles(plan.lengths, best_batch=best_batch, max_batch=max_batch)
    return {
        "lengths": plan.lengths,
        "best_batch": best_batch,
        "max_batch": max_batch,
        "texts": plan.texts,
        "padding_waste": round(plan.waste, 6),
        "cost_above_unpadded": round(plan.cost / plan.unpadded_cost - 1, 6),
        "profiles": [profile.as_json() for profile in profiles],
    }
