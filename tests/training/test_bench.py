"""`training.bench`, `training.quality`: contestants train, ratios are taken in rounds, docs/training.md has their tables."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from contract.command import UsageError
from tests.tiny import random_encoded, tiny_config, tiny_vocabulary
from training.bench import GOALS, Bench, Ours, alternate, markdown, ratio
from training.quality import ROWS, Quality, quality, read_measurements, table
from training.rivals import PeftTrainer, Settings, fast_settings

ROOT = Path(__file__).parents[2]
MEASUREMENTS = ROOT / "docs" / "measurements"


def test_ratios_are_of_one_round() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_contestants_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []

    def contestant(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = alternate({name: partial(contestant, name) for name in "ab"}, 2, "rounds")
    assert "".join(calls) == "ababab"
    assert values == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


@pytest.mark.parametrize("cached", [False, True])
def test_our_contestant_trains_an_epoch(tiny_base: Path, tmp_path: Path, cached: bool) -> None:
    train = random_encoded(8, tiny_config(num_labels=2, vocab_size=len(tiny_vocabulary())))
    cache = tmp_path / "prefix.bin" if cached else None
    ours = Ours(tiny_base, train, "lora", batch_rows=4, layers=[1], cache=cache)
    before = {name: value.clone() for name, value in ours._model.named_parameters() if value.requires_grad}
    assert ours.epoch_s() > 0
    assert any((value != before[name]).any() for name, value in ours._model.named_parameters() if name in before)


@pytest.mark.filterwarnings("ignore")  # of the rival's own libraries
@pytest.mark.parametrize("settings", [Settings(), *fast_settings(torch.bfloat16).values()])
def test_the_rival_trains_an_epoch(merged: Path, settings: Settings) -> None:
    train = random_encoded(8, tiny_config(num_labels=2, vocab_size=len(tiny_vocabulary())))
    rival = PeftTrainer(merged, train, settings=settings, rank=2, alpha=4, batch_rows=4)
    before = {name: value.clone() for name, value in rival._model.named_parameters() if value.requires_grad}
    assert rival.epoch_s() > 0
    assert any((value != before[name]).any() for name, value in rival._model.named_parameters() if name in before)
    assert len(before) == 2 * 2 * 2 + 2  # A and B of query and value in two layers, and the head
    assert {value.dtype for name, value in before.items() if "lora_" in name} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "said"), [({"rounds": 2}, "--rounds is 2"), ({"texts": 8, "batch_rows": 9}, "--texts is 8, --batch-rows 9")]
)
def test_a_bench_that_measures_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Bench(output=tmp_path / "out.json", **changes)


def test_a_row_is_measured_over_its_seeds_beside_its_baseline(
    tiny_base: Path, tiny_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"dataset": "stackoverflow", "strategy": "head", "max_length": 16, "epochs": 1}
    monkeypatch.setitem(ROWS, "tiny", settings)
    rows = ["Title,BodyMarkdown,OpenStatus"]
    for number, line in enumerate(tiny_csv.read_text(encoding="utf-8").splitlines()[1:]):
        text, kind = line.split(",")
        rows.append(f"{number},{text},{'open' if kind == 'plant' else 'off topic'}")
    (tmp_path / "questions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    options = Quality(
        row="tiny",
        data=tmp_path / "questions.csv",
        base=str(tiny_base),
        seeds=(0, 1),
        work=tmp_path / "work",
        output=tmp_path / "measured",
    )
    quality(options)
    (measured,) = read_measurements(tmp_path / "measured")
    assert [run["seed"] for run in measured["runs"]] == [0, 1]
    accuracies = [
        json.loads((tmp_path / "work" / f"tiny-{seed}" / "run.json").read_text())["test"]["accuracy"] for seed in (0, 1)
    ]
    assert [run["test"]["accuracy"] for run in measured["runs"]] == accuracies
    assert f"{measured['baseline']['accuracy']:.2%}" in table([measured])
    assert f"{sum(accuracies) / 2:.2%} ({min(accuracies):.2%} to {max(accuracies):.2%}, 2 seeds)" in table([measured])
    first = (tmp_path / "work" / "tiny-0" / "run.json").stat().st_mtime_ns
    quality(options)
    assert (tmp_path / "work" / "tiny-0" / "run.json").stat().st_mtime_ns == first  # finished: not run again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row": "imdb"}, "the row is 'imdb'; known are stackoverflow-lora,"),
        ({"row": "yelp-lora"}, "yelp-lora needs --data, the data set yelp"),
        ({"row": "yelp-lora", "data": Path("yelp.csv"), "seeds": ()}, "--seeds is empty"),
    ],
)
def test_an_unknown_row_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Quality(**changes)


def marked(name: str) -> str:
    """The page's table behind the marker of `name`."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    found = re.findall(rf"^<!-- table: docs/measurements/{name} -->\n\n?((?:[^\n#<].*\n|\n)*)", page, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} markers of {name} on the page"
    return str(found[0]).strip()


def test_the_page_holds_the_measured_training_speed() -> None:
    measured = json.loads((MEASUREMENTS / "training.json").read_text(encoding="utf-8"))
    assert marked("training.json").startswith(markdown(measured))
    assert {(entry["faster"], entry["slower"]): entry["goal"] for entry in measured["strategies"]["ratios"]} == GOALS


def test_the_page_holds_the_measured_quality() -> None:
    measurements = read_measurements(MEASUREMENTS / "quality")
    assert {measured["row"] for measured in measurements} == {path.stem for path in (MEASUREMENTS / "quality").glob("*.json")}
    assert marked("quality") == table(measurements)
