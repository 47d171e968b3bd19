"""From labelled text to a served, measured classifier: runs the documented commands in order and prints one table.

    python -m demo
    python -m demo --dataset stackoverflow --data train.csv.gz
    python -m demo --dataset csv --data reviews.csv --text review --label stars

Everything goes into a new folder, build/demo/DATASET-N; the server is stopped at the end. What it runs is printed, and can be
run by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo.commands import CommandError, Server, run
from demo.table import markdown

TEXTS_COMPARED = 1000
LOAD_SECONDS = 15
LOAD_USERS = 8

# What fits 2 cores and 6 minutes for the docstrings; Stack Overflow questions are longer and harder.
DEFAULTS = {
    "docstrings": {"train_rows": 2500, "max_length": 128, "epochs": 2},
    "stackoverflow": {"train_rows": 16000, "max_length": 256, "epochs": 1},
    "imdb": {"train_rows": 4000, "max_length": 256, "epochs": 1},
    "yelp": {"train_rows": 4000, "max_length": 256, "epochs": 1},
    "complaints": {"train_rows": 4000, "max_length": 256, "epochs": 3},
    "csv": {"train_rows": 4000, "max_length": 128, "epochs": 2},
}


def parse_options() -> argparse.Namespace:
    """The command line; unset sizes take the data set's default."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dataset", choices=sorted(DEFAULTS), default="docstrings", help="what to train on")
    parser.add_argument("--data", help="CSV file, plain or .gz, or the folder aclImdb; docstrings need none")
    parser.add_argument("--text", help="column of the texts, for csv")
    parser.add_argument("--label", help="column of the labels, for csv")
    parser.add_argument("--base", default="minilm", help="base model: minilm, a Hugging Face BERT folder, or a hub name")
    parser.add_argument("--train-rows", type=int, help="train on at most so many rows")
    parser.add_argument("--max-length", type=int, help="tokens read of a text")
    parser.add_argument("--epochs", type=int, help="passes over the training rows")
    options = parser.parse_args()
    for name, value in DEFAULTS[options.dataset].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def new_folder(name: str) -> Path:
    """build/demo/NAME-N with the first N that is free, so that no earlier run is touched."""
    number = 1
    while (folder := Path("build/demo") / f"{name}-{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def engine_counts(metrics_url: str) -> tuple[int, int]:
    """(texts, executions) of the engine so far, out of Triton's Prometheus metrics."""
    with urllib.request.urlopen(f"http://{metrics_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = []
    for metric in ("nv_inference_count", "nv_inference_exec_count"):
        lines = re.findall(rf'^{metric}{{[^}}]*model="bert_engine"[^}}]*}} (\d+)', text, re.MULTILINE)
        counts.append(sum(map(int, lines)))
    return counts[0], counts[1]


def train_and_build(options: argparse.Namespace, work: Path) -> None:
    """Fine-tune, merge, build, publish, and write down the checkpoint's own answers."""
    data = [word for name in ("data", "text", "label") if (value := getattr(options, name)) for word in (f"--{name}", value)]
    run(
        *("python", "-m", "training.finetune", "--dataset", options.dataset, *data, "--base", options.base),
        *("--train-rows", str(options.train_rows), "--max-length", str(options.max_length), "--epochs", str(options.epochs)),
        *("--output", work / "finetuned"),
    )
    run("python", "-m", "training.merge", work / "finetuned", "--output", work / "merged")
    repository = work / "model_repository"
    run("python", "-m", "builders.build", work / "merged", "--output", work / "release", "--repository", repository)
    run("python", "-m", "serving.releases", "publish", work / "release", "--repository", repository)
    limit = ("--limit", str(TEXTS_COMPARED))
    run("python", "-m", "training.predict", work / "merged", "--output", work / "predictions.jsonl", *limit)


def measure(work: Path, server: dict[str, str]) -> dict[str, Any]:
    """Classify one text for the eye, then served parity, latency and load."""
    texts = work / "merged" / "heldout.jsonl"
    grpc, http = server["grpc_url"], server["http_url"]
    with texts.open(encoding="utf-8") as file:
        shortest = min((json.loads(line)["text"] for line, _ in zip(file, range(TEXTS_COMPARED), strict=False)), key=len)
    run("python", "-m", "clients.classify", shortest, "--url", grpc)
    parity = ("--grpc-url", grpc, "--http-url", http, "--output", work / "parity.json")
    run("python", "-m", "loadtests.parity", work / "predictions.jsonl", *parity)
    for protocol, url in (("grpc", grpc), ("http", http)):
        where = ("--url", url, "--protocol", protocol, "--output", work / f"latency_{protocol}.json")
        run("python", "-m", "loadtests.latency", "--texts", texts, *where)
    before = engine_counts(server["metrics_url"])
    run(
        *(
            "locust",
            "-f",
            "loadtests/locustfile.py",
            "GrpcUser",
            "--host",
            grpc,
            "--texts",
            texts,
            "--headless",
            "--only-summary",
        ),
        *("--users", str(LOAD_USERS), "--spawn-rate", str(LOAD_USERS), "--reset-stats", "--run-time", f"{LOAD_SECONDS}s"),
        *("--summary", work / "load.json"),
    )
    after = engine_counts(server["metrics_url"])
    results = {name: _read(work / f"{name}.json") for name in ("parity", "latency_grpc", "latency_http", "load")}
    return results | {"engine_texts": after[0] - before[0], "engine_executions": after[1] - before[1]}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory: what a figure means nothing without."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
    }


def main() -> None:
    """Run it all; the exit code is that of the command that failed."""
    options = parse_options()
    started = time.perf_counter()
    work = new_folder(options.dataset)
    try:
        train_and_build(options, work)
        with Server(work / "model_repository") as server:
            results = measure(work, server)
    except CommandError as error:
        sys.exit(error.code)
    measured = {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": time.perf_counter() - started,
        "machine": describe_machine(),
        "run": _read(work / "merged" / "run.json"),
        "certificate": _read(work / "merged" / "merge_certificate.json"),
        "manifest": _read(work / "release" / "manifest.json"),
        **results,
    }
    (work / "measurements.json").write_text(json.dumps(measured, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{markdown(measured)}")
    print_next_steps(work)


def print_next_steps(work: Path) -> None:
    """Where everything lies, and what to type next."""
    python = os.path.relpath(sys.executable)
    print(f"""
checkpoint    {work}/finetuned          LoRA adapter and head, in PEFT's format
merged        {work}/merged             plain BERT; transformers loads it; merge_certificate.json
release       {work}/release            engine, tokenizer, labels, manifest.json
repository    {work}/model_repository   what tritonserver serves
measurements  {work}/measurements.json

serve it again     {python} -m serving --repository {work}/model_repository
classify a text    {python} -m clients.classify "some text" --url 127.0.0.1:8001
look inside        curl -s 127.0.0.1:8000/v2/models/bert_classifier
                   curl -s 127.0.0.1:8002/metrics
                   less {work}/model_repository.log""")


if __name__ == "__main__":
    main()
