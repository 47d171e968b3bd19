"""From the samples of `builders.bench` to its JSON, and from that to the table for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

REFERENCE = "transformers fp32"
PLAIN = "plain "
"""How the names of the rivals begin that the best of our engines has to beat."""
OURS = "ours: "


def summarise(
    samples: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    ceilings: Mapping[str, Sequence[float]],
    accuracy: Mapping[str, Mapping[str, float]],
    lengths: Sequence[int],
    base: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The measured part of the JSON.

    Args:
        samples: batch size -> engine -> for each round the seconds of every batch.
        ceilings: precision and runtime, `fp32 torch` -> GFLOP/s of each round.
        lengths: tokens of each timed text.
        base: what `builders.bench.measure_base_shape` gives.
    """
    engines = {
        size: {name: _engine(rounds, lengths, series[REFERENCE]) for name, rounds in series.items()}
        for size, series in samples.items()
    }
    result: dict[str, Any] = {
        "engines": engines,
        "accuracy": {name: dict(values) for name, values in accuracy.items()},
        "ceilings_gflops": _best_products(ceilings),
        "goals": {size: _goals(series) for size, series in samples.items()},
    }
    if base is not None:
        result["bert_base"] = _base(base, result["ceilings_gflops"])
    return result


def _best_products(products: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """By precision: the runtime whose product is the fastest, and its GFLOP/s."""
    best: dict[str, Any] = {}
    for name, values in products.items():
        precision, runtime = name.split()
        found = _spread(values) | {"runtime": runtime}
        best[precision] = max(best.get(precision, found), found, key=lambda one: float(one["median"]))
    return best


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _engine(rounds: Sequence[Sequence[float]], lengths: Sequence[int], reference: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of one engine at one batch size: speed over all texts, and how long a batch took."""
    totals = [sum(seconds) for seconds in rounds]
    every = [1000 * second for seconds in rounds for second in seconds]
    return {
        "samples_per_s": _spread([len(lengths) / total for total in totals]),
        "tokens_per_s": _spread([sum(lengths) / total for total in totals]),
        "batch_ms": {f"p{level}": float(np.percentile(every, level)) for level in (50, 95, 99)},
        "speedup": statistics.median(sum(theirs) / total for theirs, total in zip(reference, totals, strict=True)),
    }


def _goals(series: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """The best of ours beside the reference and beside the best of the plain runtimes, ratios of the same rounds."""

    def median_of(name: str) -> float:
        return statistics.median(sum(seconds) for seconds in series[name])

    ours = min((name for name in series if name.startswith(OURS)), key=median_of)
    plain = min((name for name in series if name.startswith(PLAIN)), key=median_of)

    def ratio(slower: str) -> float:
        return statistics.median(sum(a) / sum(b) for a, b in zip(series[slower], series[ours], strict=True))

    return {"best": ours, "over_transformers_fp32": ratio(REFERENCE), "best_plain": plain, "over_best_plain": ratio(plain)}


def _base(base: Mapping[str, Any], ceilings: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """GFLOP/s of each engine in BERT-base's shape and its share of the ceiling of its precision."""
    engines = {}
    for name, values in base["ms"].items():
        gflops = base["gigaoperations"] / statistics.median(values) * 1000
        engines[name] = {"ms": _spread(values), "gflops": gflops, "of_ceiling": gflops / ceilings[name.split()[-1]]["median"]}
    return {"batch": base["batch"], "tokens": base["tokens"], "gigaoperations": base["gigaoperations"], "engines": engines}


def markdown(measured: Mapping[str, Any]) -> str:
    """The tables for the README."""
    tokens = measured["tokens"]
    lines = [
        f"{measured['texts']} held-out texts of {measured['data']}, {tokens['least']} to {tokens['greatest']} tokens, mean "
        f"{tokens['mean']:.0f}; {measured['rounds']} rounds in turn, medians; {measured['machine']['cpu']}, "
        f"{measured['machine']['threads']} threads; accuracy on {measured['accuracy_texts']} texts.",
    ]
    for size, engines in measured["engines"].items():
        lines += ["", *_table(size, engines, measured["accuracy"]), "", _sentence(measured, size)]
    speeds = ", ".join(
        " ".join(filter(None, (name, f"{value['median']:.0f}", value.get("runtime") and f"by {value['runtime']}")))
        for name, value in measured["ceilings_gflops"].items()
    )
    lines += ["", f"Ceilings of the same run, GFLOP/s: {speeds}."]
    if base := measured.get("bert_base"):
        shares = ", ".join(
            f"{name.removeprefix(OURS)} {value['gflops']:.0f} GFLOP/s ({value['of_ceiling']:.0%} of its ceiling)"
            for name, value in base["engines"].items()
        )
        lines += ["", f"BERT-base's shape at {base['batch']} x {base['tokens']} tokens: {shares}."]
    return "\n".join(lines)


def _table(size: str, engines: Mapping[str, Any], accuracy: Mapping[str, Any]) -> list[str]:
    head = (
        f"| batch {size} | samples/s (least to greatest) | tokens/s | p50 / p95 / p99 ms | speed-up | accuracy | other labels |"
    )
    lines = [head, "|---" * 7 + "|"]
    for name, engine in engines.items():
        speed, times = engine["samples_per_s"], engine["batch_ms"]
        cells = (
            f"{speed['median']:.1f} ({speed['min']:.1f} to {speed['max']:.1f})",
            f"{engine['tokens_per_s']['median']:.0f}",
            f"{times['p50']:.1f} / {times['p95']:.1f} / {times['p99']:.1f}",
            f"{engine['speedup']:.2f}x",
            f"{accuracy[name]['accuracy']:.2%}",
            f"{accuracy[name]['flips']:.2%}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _sentence(measured: Mapping[str, Any], size: str) -> str:
    goals, padding = measured["goals"][size], measured["padding"][size]
    filled = f" ({padding['openvino']:.1%} in OpenVINO's calls, filled up to a step)" if "openvino" in padding else ""
    return (
        f"Batch {size}: {goals['best']} is {goals['over_transformers_fp32']:.2f}x transformers fp32 and "
        f"{goals['over_best_plain']:.2f}x {goals['best_plain']}; padding is {padding['ours']:.1%} of the tokens "
        f"that our engines compute{filled}, {padding['plain']:.1%} in plain batches."
    )
