"""What the tests of recipes and reports share: checkpoint folders with a `run.json` written by hand, and tiny data sets."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.files import write_json
from tests.tiny import tiny_texts
from training.recipes import find_recipe
from training.stackoverflow import TABULAR_COLUMNS


def metrics(quality: float, *, loss: float | None = None, samples: int = 200) -> dict[str, Any]:
    """Metrics around one number, all different, so that a swapped column shows."""
    names = ("accuracy", "precision", "recall", "f1", "weighted_precision", "weighted_recall", "weighted_f1")
    shares = {name: round(quality - 0.011 * place, 4) for place, name in enumerate(names)}
    return {"loss": round(-math.log(quality), 4) if loss is None else loss, **shares, "samples": samples}


def made_record(name: str, *, quality: float, epochs: int = 3, seconds: float = 60.0, **configuration: Any) -> dict[str, Any]:
    """The `run.json` of a run of a recipe on MiniLM; the second epoch is the best one."""
    recipe = find_recipe(name)
    made = [
        {
            "epoch": epoch,
            "train_loss": 0.7 / epoch,
            "validation": metrics(quality - 0.03 / epoch, loss=round(0.5 + 0.05 * abs(epoch - 2), 4)),
            "seconds": seconds + epoch,
            "samples_per_s": 1200 / seconds,
            "best": epoch <= 2,
        }
        for epoch in range(1, epochs + 1)
    ]
    trainable = recipe.published.trainable or 0
    return {
        "configuration": {**recipe.settings, "base": "minilm", "epochs": epochs, **configuration},
        "base": {"source": "minilm", "sha256": "0" * 64},
        "data": {"name": recipe.dataset, "labels": ["a", "b"]},
        "strategy": {
            "name": recipe.strategy,
            "description": "made",
            "trainable": trainable,
            "total": recipe.published.total or 100_000_000,
        },
        "epochs": [] if recipe.strategy == "none" else made,
        "test": metrics(quality),
        "peak_memory_bytes": 1_234_500_000,
    }


def make_run(folder: Path, name: str, **changes: Any) -> Path:
    """A folder of that record with a weights file of 1,000 bytes."""
    recipe = find_recipe(name)
    place = folder / recipe.name
    place.mkdir(parents=True)
    write_json(place / "run.json", made_record(name, **changes))
    weights = "adapter_model.safetensors" if recipe.strategy == "lora" else "model.safetensors"
    (place / weights).write_bytes(bytes(1000))
    return place


def write_sources(folder: Path, *, rows: int = 160) -> dict[str, Path]:
    """Tiny files in the form of the four published data sets, of words that the tiny vocabulary knows; by data set."""
    texts = tiny_texts(rows)
    files = {name: folder / f"{name}.csv" for name in ("stackoverflow", "imdb", "yelp", "complaints")}
    animal = [label == "animal" for _, label in texts]
    questions: list[Sequence[str]] = [("Title", "BodyMarkdown", "OpenStatus", *TABULAR_COLUMNS)]
    for row, ((text, _), is_open) in enumerate(zip(texts, animal, strict=True)):
        dates = ("01/02/2011 03:04:05", f"01/{1 + row % 28:02}/2010 00:00:00")
        status = "open" if is_open else "off topic"
        questions.append((text.split()[0], text, status, *dates, str(row), "cat", *[""] * 4))
    _write(files["stackoverflow"], questions)
    sentiments = ["positive" if positive else "negative" for positive in animal]
    _write(files["imdb"], [("review", "sentiment"), *zip((text for text, _ in texts), sentiments, strict=True)])
    stars = ["5" if positive else "1" for positive in animal]
    _write(files["yelp"], [("stars", "text"), *zip(stars, (text for text, _ in texts), strict=True)])
    products = ["Mortgage" if product else "Student loan" for product in animal]
    long = [f"{text} the very old big green house near the slow tree we saw" for text, _ in texts]
    _write(files["complaints"], [("Product", "Consumer complaint narrative"), *zip(products, long, strict=True)])
    return files


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
