"""Measurement files of every kind, made up, in the formats that the commands write: for tests of tables and report alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from contract.files import write_json
from loadtests.peers.goals import evaluate

QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
MACHINE = {"cpu": "Made Up 9000", "cores": 2, "memory_gib": 8.0, "load_average": 0.1}


def point(per_s: float, p50_ms: float, **more: Any) -> dict[str, Any]:
    """One load on one server; the p99 is thrice the median."""
    quantiles = {f"{share:g}": p50_ms * (0.5 + share / 100 + (1.5 if share >= 99 else 0)) for share in QUANTILES}
    return {
        "requests_per_s": per_s,
        "p50_ms": quantiles["50"],
        "p95_ms": quantiles["95"],
        "p99_ms": 3 * quantiles["50"],
        "requests": round(6 * per_s),
        "error_rate": 0.0,
        "errors": {},
        "mean_ms": p50_ms,
        "quantiles_ms": quantiles,
        "generator_cpu_share": 0.1,
        "lateness_p99_ms": 0.2,
        **more,
    }


def server(peak: float, *, memory_mib: float, at: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One server in one round."""
    return {
        "cold_start_s": 200 / peak,
        "labels": {"texts": 400, "equal": 399},
        "closed": {str(users): point(peak * share, 1000 * users / peak) for users, share in ((1, 0.6), (8, 0.9), (32, 1.0))},
        "peak_per_s": peak,
        "open": {str(share): point(peak * share, 1000 / peak / (1 - share), rate=peak * share) for share in (0.5, 0.8)},
        "at": at or {},
        "overload": point(0.9 * peak, 4000, rate=2 * peak) | {"error_rate": 0.25},
        "memory_bytes": round(memory_mib * 2**20),
        **more,
    }


def ours(peak: float, rates: dict[str, float]) -> dict[str, Any]:
    """Our server in one round."""
    stages = {"client": 0.0, "wire": 0.3, "tokenizer queue": 0.1, "tokenizer compute": 0.4, "engine queue": 0.1}
    stages |= {"engine compute": 8.0, "ensemble": 0.2}
    at = {name: point(rate, 9.0, rate=rate) for name, rate in rates.items()}
    found = server(peak, memory_mib=350, at=at, cores=2)
    found["bare"] = [{"ours": point(share * peak, 300), "theirs": {"requests_per_s": 1.25 * peak}} for share in (1, 0.9, 1.1)]
    found["closed"]["1"]["stages"] = {"mean_ms": stages, "total_ms": sum(stages.values()), "knob": "engine", "reason": "it"}
    p50_ms = {"total": 9.1, "tokenizer compute": 0.4, "engine compute": 8.0, "beyond": 0.7, "queues": 0.2}
    quicker = p50_ms | {"total": 8.9, "beyond": 0.5}
    of_engine = {"requests": 300, "tokenizer_of_engine_p50": 0.05}
    turns = [p50_ms | {"beyond": beyond} for beyond in (0.9, 0.7, 0.6)]
    return found | {
        "alone": [of_engine | {"p50_ms": turn} for turn in turns],
        "alone_http": [of_engine | {"p50_ms": quicker}],
    }


def duel(peak: float, theirs: float) -> dict[str, Any]:
    """Loads in turn of ours and of a peer, of so many requests per second, while the machine goes slower and faster."""
    paces = (1, 0.8, 1.2)
    saturated = [{"ours": point(pace * peak, 300), "theirs": point(pace * theirs, 300)} for pace in paces]
    alone = [{"ours": point(40, 1000 / peak / pace), "theirs": point(20, 1000 / theirs / pace)} for pace in paces]
    return {"saturated": saturated, "alone": alone}


def peers_file(rounds: int = 2) -> dict[str, Any]:
    """peers.json of ours and two peers, one of them in two settings; a third could not be measured."""
    titles = {
        "fast-best": {"title": "Fast", "settings": "bfloat16, batches", "best": True},
        "fast": {"title": "Fast", "settings": "defaults", "best": False},
        "plain": {"title": "Plain <server>", "settings": "defaults", "best": False},
    }
    servers = {name: facts | {"protocol": "HTTP", "versions": {"torch": "2.13.0"}} for name, facts in titles.items()}
    found = {}
    for number in range(1, rounds + 1):
        peers = {"fast-best": server(60 + number, memory_mib=500), "fast": server(30, memory_mib=600)}
        peers["plain"] = server(20 + number, memory_mib=400)
        rates = {name: 0.8 * each["peak_per_s"] for name, each in peers.items()}
        duels = {name: duel(99 + number, peers[name]["peak_per_s"]) for name in ("fast", "fast-best")}
        found[str(number)] = peers | {"ours": ours(99 + number, rates) | {"duels": duels}}
    best = {name: bool(facts["best"]) for name, facts in servers.items()}
    ours_facts = {
        "title": "BERT on Triton",
        "settings": "int8",
        "best": True,
        "protocol": "gRPC",
        "versions": {"onnx": "1.23.2"},
    }
    return {
        "schema": 1,
        "identity": {"release": "made-1"},
        "date": "2026-01-02",
        "machine": MACHINE,
        "engine": "onnxruntime int8",
        "servers": servers | {"ours": ours_facts, "broken": titles["plain"]},
        "rounds": found,
        "failed": {"broken": "the server ended with code 139:\nSegmentation fault"},
        "goals": evaluate(list(found.values()), best),
    }


def load_file(name: str, *, rate: float = 40.0) -> dict[str, Any]:
    """A result of `loadtests.run`."""
    made = point(rate, 10.0)
    estimate = {"value": rate, "low": 0.9 * rate, "high": 1.1 * rate}
    return {
        "schema": 1,
        "name": name,
        "loop": "open",
        "note": "open loop: latency counts from the time at which each request should have been sent",
        "requests": 600,
        "requests_per_s": estimate,
        "texts_per_s": rate,
        "p99_ms": {"value": 30.0, "low": 25.0, "high": 35.0},
        "mean_ms": 11.0,
        "quantiles_ms": made["quantiles_ms"],
        "timeline": [
            {"second": second, "good": rate, "failed": 0, "p50_ms": 10 + second % 3, "p99_ms": 25 + 5 * (second % 4)}
            for second in range(15)
        ],
        "error_rate": 0.0,
        "errors": {},
        "messages": {},
        "releases": {"made-1": 600},
        "lateness_p99_ms": 0.1,
        "generator_cpu_share": 0.12,
        "drift": "",
        "ceiling": {"requests_per_s": 4000.0, "how": "measured"},
        "scenario": {},
        "machine": MACHINE,
        "stages": {
            "mean_ms": {"client": 0.1, "wire": 0.5, "tokenizer compute": 0.4, "engine queue": 2.0, "engine compute": 8.0},
            "total_ms": 11.0,
            "knob": "engine",
            "reason": "engine compute is 8 of 11 ms",
        },
        "refusals": [],
    }


def engines_file() -> dict[str, Any]:
    """engines.json: one engine of ours and one other, batches of 1 and 32."""

    def engine(speed: float, ms: float = 10.0) -> dict[str, Any]:
        spread = {"median": speed, "min": 0.9 * speed, "max": 1.1 * speed}
        tokens = {name: 90 * value for name, value in spread.items()}
        return {"samples_per_s": spread, "tokens_per_s": tokens, "batch_ms": {"p50": ms, "p95": 1.1 * ms, "p99": 1.2 * ms}} | {
            "speedup": speed / 20
        }

    engines = {"ours: onnxruntime int8": engine(100.0), "transformers fp32": engine(20.0)}
    alone = {"ours: onnxruntime int8": engine(90.0, 2.0), "transformers fp32": engine(25.0, 8.0)}
    accuracies = zip(engines, ((0.785, 0.004), (0.786, 0.0)), strict=True)
    share = {"ours: onnxruntime int8": {"ms": {}, "gflops": 1000.0, "of_ceiling": 0.7}}
    return {
        "date": "2026-01-02",
        "data": "stackoverflow",
        "texts": 96,
        "tokens": {"mean": 90.0, "least": 10, "greatest": 256},
        "rounds": 5,
        "machine": {"cpu": "Made Up 9000", "threads": 2},
        "engines": {"1": alone, "32": engines},
        "accuracy": {name: {"accuracy": accuracy, "flips": flips} for name, (accuracy, flips) in accuracies},
        "goals": {
            "32": {"best": "ours: openvino int8", "over_transformers_fp32": 6.5, "best_plain": "plain openvino"}
            | {"over_best_plain": 2.5}
        },
        "padding": {"32": {"plain": 0.4, "ours": 0.015, "openvino": 0.025}},
        "ceilings_gflops": {"int8": {"median": 1430.0, "min": 1400.0, "max": 1500.0, "runtime": "openvino"}},
        "bert_base": {"batch": 8, "tokens": 128, "gigaoperations": 180.0, "engines": share},
    }


def int8_file() -> dict[str, Any]:
    """int8.json: one release beside the first."""
    int8 = {"accuracy": 0.774, "points": -0.1, "noise_points": 0.2, "lost": 60, "won": 55, "p_value": 0.7, "flips": 0.023}
    return {
        "date": "2026-01-02",
        "machine": MACHINE,
        "data": "made up",
        "rows": 5000,
        "mean_tokens": 149.2,
        "first": {"engine": "onnxruntime fp32", "accuracy": 0.775},
        "releases": {"openvino int8": int8 | {"flips_of_ties": 0.01, "mean_logit_error": 0.03, "passes": True}},
    }


def swap_file() -> dict[str, Any]:
    """chaos-swap.json."""
    return {
        "release": "made-1",
        "machine": {"processor": "x86_64", "cores": 2},
        "swaps": 100,
        "counts": {"publish": 17, "rollback": 17, "promote": 16, "refused": 50},
        "bad_releases": 50,
        "requests": 12345,
        "failed": 0,
        "mixed": 0,
        "failure_rate_bound": 3 / 12345,
        "wrong": [],
        "capacity_per_s": 90.0,
        "rate_per_s": 36.0,
        "steady_p99_ms": 30.0,
        "flip_p99_ms": 36.0,
        "flip_ratio": 1.2,
        "loading_p99_ms": 90.0,
        "loading_ratio": 3.0,
        "loading_s": 4.0,
        "pss_mb": [400 + 3 * math.sin(number) for number in range(10)],
        "sequential_p50_ms": [9 + math.cos(number) / 10 for number in range(10)],
        "restart_s": 3.5,
        "timeline": timeline("promote"),
    }


def tiny_swap_file() -> dict[str, Any]:
    """chaos-swap-tiny.json."""
    found = {"release": "tiny", "slowest_rollback_s": 0.314, "missed": ["flip_ratio is 1.3, allowed 1.25"]}
    return swap_file() | found | {"growth": {"pss_mb": {"growth": 1.5, "standard_error": 2.0}}}


def overload_file() -> dict[str, Any]:
    """overload.json."""
    phases = []
    for factor in (0.5, 1.0, 2.0, 5.0):
        good = min(factor, 0.97) * 20
        refused = round((factor * 20 - good) * 10)
        phases.append(
            {
                "factor": factor,
                "cores": {"generator": 0.1, "tritonserver": 0.2, "bert_engine": 1.6},
                "offered_per_s": 20 * factor,
                "goodput_per_s": good,
                "late": 0,
                "refused": refused,
                "refusal_codes": {"UNAVAILABLE": refused} if refused else {},
                "errors": {},
                "answer_ms": {"p50": 100 * factor, "p95": 200 * factor, "p99": 250 * factor},
                "refusal_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0} if refused else {},
                "recovery_s": 0.2 * factor,
                "of_peak": good / 19.4,
                "of_peak_per_core": good / 19.4,
            }
        )
    facts = {"date": "2026-01-02", "cores": 2, "texts": 8, "tokens": 32, "objective_ms": 1500.0, "timeline": timeline("load")}
    return facts | {"capacity_per_s": 20.0, "phases": phases}


def timeline(event: str) -> list[dict[str, Any]]:
    """Twenty seconds, in one of which nothing is answered; something happens every sixth."""
    rows: list[dict[str, Any]] = []
    for second in range(20):
        latency = {"p50_ms": 20.0 + second % 3, "p99_ms": 50.0 + 5 * (second % 4)} if second != 7 else {}
        happened = {"event": f"{event} {second // 6}"} if second % 6 == 2 else {}
        rows.append({"t": second, "per_s": 30 if latency else 0, "failed": 0 if latency else 12} | latency | happened)
    return rows


def soak_file() -> dict[str, Any]:
    """soak.json."""
    rows = [{"minute": minute, "pss_mb": 400 + minute / 10, "threads": 40, "p99_ms": 30 + minute % 3} for minute in range(30)]
    return {"date": "2026-01-02", "minutes": 30, "requests": 54000, "failed": 0, "steady": True, "samples": rows}


def search_file() -> dict[str, Any]:
    """search-*.json."""
    rows = [
        {"release": "build/int8", "instances": 1, "threads": threads, "batch": 0, "delay_us": delay, "buckets": [16, 512]}
        | {"cores": 0.5 * threads, "p99_ms": 120.0 / threads, "serves": threads > 1}
        for threads, delay in ((1, 0), (2, 1000), (4, 0))
    ]
    facts = {"date": "2026-01-02", "rate": 50.0, "p99_ms": 100.0, "machine": MACHINE, "agreement": {"build/int8": 0.998}}
    return facts | {"settings": 48, "measured": 12, "pareto": rows, "winner": rows[1] | {"result": {}}}


def make_measurements(folder: Path) -> Path:
    """A folder with a file of each kind that has no real one yet."""
    write_json(folder / "peers.json", peers_file())
    write_json(folder / "engines.json", engines_file())
    write_json(folder / "int8.json", int8_file())
    write_json(folder / "load-steady.json", load_file("steady"))
    write_json(folder / "load-saturation.json", load_file("saturation", rate=90.0) | {"refusals": ["not steady"]})
    write_json(folder / "search-fifty.json", search_file())
    write_json(folder / "chaos-swap.json", swap_file())
    write_json(folder / "chaos-swap-tiny.json", tiny_swap_file())
    write_json(folder / "overload.json", overload_file())
    write_json(folder / "soak.json", soak_file())
    return folder
