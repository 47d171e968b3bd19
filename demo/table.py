"""One Markdown table out of a measurements file, for the terminal and for the README.

python -m demo.table docs/measurements/demo-docstrings.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def rows(measured: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of everything that a demo run measured; nothing here that is not in the file."""
    machine, load = measured["machine"], measured["load"]
    texts_a_call = measured["engine_texts"] / measured["engine_executions"]
    latencies = [(f"latency, one in flight, {name}", measured[f"latency_{name.lower()}"]) for name in ("gRPC", "HTTP")]
    return [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {measured['date']}"),
        *_training_rows(measured["run"]),
        *_proof_rows(measured),
        *((title, "  ".join(f"{point} {result[f'{point}_ms']:.1f} ms" for point in _POINTS)) for title, result in latencies),
        (f"throughput, {load['users']} Locust users, {load['protocol']}", f"{load['texts_per_s']:.1f} texts/s"),
        ("requests failed under that load", f"{load['failures']} of {load['requests']}"),
        ("texts per engine call under that load", f"{texts_a_call:.2f}"),
        ("whole demo, after the installs", f"{measured['seconds']:.0f} s"),
    ]


_POINTS = ("p50", "p95", "p99")


def _training_rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    best = min(run["epochs"], key=lambda epoch: epoch["validation"]["loss"])
    parts = ", ".join(f"{part['rows']:,} {name}" for name, part in run["data"]["parts"].items())
    seconds = sum(epoch["seconds"] for epoch in run["epochs"])
    test = run["test"]
    return [
        ("data", f"{run['data']['name']}, {len(run['data']['labels'])} classes: {parts}"),
        (
            "training",
            f"{seconds:.0f} s, {best['samples_per_s']:.1f} texts/s; epoch {best['epoch']} of {len(run['epochs'])} kept",
        ),
        ("test accuracy", f"{test['accuracy']:.2%} (loss {test['loss']:.4f})"),
        ("test macro precision / recall / F1", f"{test['precision']:.2%} / {test['recall']:.2%} / {test['f1']:.2%}"),
    ]


def _proof_rows(measured: dict[str, Any]) -> list[tuple[str, str]]:
    certificate, engine, served = measured["certificate"], measured["manifest"]["parity"], measured["parity"]
    verdict = "passed" if certificate["passed"] else "FAILED"
    equal, off = min(served["labels_equal"].values()), max(served["max_logit_difference"].values())
    alone, together = served["grpc_http_one_at_a_time"], served["grpc_http_concurrent"]
    same = "equal" if alone == 0 else f"within {alone:.1e}"
    return [
        ("merge certificate", f"{verdict}, fp32 logits within {certificate['fp32']['max_abs']:.1e}"),
        ("ONNX against checkpoint", f"logits within {engine['max_abs']:.1e}"),
        ("served against checkpoint", f"{equal} of {served['texts']} labels equal, logits within {off:.1e}"),
        ("gRPC against HTTP", f"{same} one at a time, within {together:.1e} with {served['concurrency']} in flight"),
    ]


def markdown(measured: dict[str, Any]) -> str:
    """The table as aligned Markdown, readable as it is."""
    cells = [("measured", "result"), *rows(measured)]
    width, second = (max(len(row[column]) for row in cells) for column in (0, 1))
    lines = [f"| {what:<{width}} | {value:<{second}} |" for what, value in cells]
    return "\n".join([lines[0], f"|{'-' * (width + 2)}|{'-' * (second + 2)}|", *lines[1:]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path, help="JSON file that a demo run wrote")
    print(markdown(json.loads(parser.parse_args().measurements.read_text(encoding="utf-8"))))
