"""`training.replay`, the command: which base it runs on, what it fits to it and says so, and what it prints at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import training.replay
from contract.command import UsageError
from contract.files import read_json
from tests.training.made_runs import write_sources
from training.published import show_setting
from training.recipes import find_recipe
from training.replay import Replay, choose_base, replay, settings_for

QUICK: dict[str, Any] = {"epochs": 1, "device": "cpu"}
SMALL: dict[str, Any] = {"sample_frac": 1.0, "class_threshold": 30}  # of a small file of complaints


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


def hub_without(*absent: str, embedded: Path, folder: Path | None = None) -> Any:
    """A `find_base` under which the hub has nothing of these names."""

    def find(source: str) -> Path:
        if source in absent:
            raise UsageError(f"{source!r} is neither a folder here, nor could the hub give it: offline\nand more")
        return embedded if source == "minilm" else folder or Path(source)

    return find


@pytest.mark.parametrize(
    ("name", "departures"),
    [
        ("stackoverflow-lora-r8-last4", {"layers": [1]}),
        ("stackoverflow-tabular-full", {"tabular": True}),
        ("yelp-none", {}),
        ("yelp-first2", {"k": 2}),
        ("complaints-scratch", {"max_length": 512}),
        ("imdb-masked", {"mask_share": 0.2}),
    ],
)
def test_every_kind_of_recipe_runs(
    name: str, departures: dict[str, Any], sources: dict[str, Path], tiny_base: Path, tmp_path: Path, capsys: Any
) -> None:
    recipe = find_recipe(name)
    given = QUICK | (SMALL if recipe.dataset == "complaints" else {})
    replay(Replay(name=name, data=sources[recipe.dataset], base=str(tiny_base), output=tmp_path / "run", **given))
    run = read_json(tmp_path / "run" / "run.json")
    configuration = run["configuration"]
    assert configuration.items() >= ({"base": str(tiny_base), "epochs": 1, "max_length": 40} | departures).items()
    assert configuration["tokens_per_batch"] == configuration["batch_rows"] * configuration["max_length"]
    assert run["strategy"]["name"] == recipe.strategy
    assert bool(run["epochs"]) == (recipe.strategy != "none")
    out = capsys.readouterr().out
    assert out.startswith(f"{recipe.name}: {recipe.replays}")
    differences = recipe.differences(configuration, run["data"]["parts"])
    fewer = f"train: {run['data']['parts']['train']['rows']} rows"
    assert any(line.startswith(fewer) for line in differences) == bool(recipe.rows)
    for line in (*recipe.otherwise, *differences):
        assert out.count(f"differs: {line}\n") == 1
    chosen = next(line for line in out.splitlines() if line.startswith("not in the source, chosen here: "))
    for field in recipe.left_open:
        assert f"{field} {show_setting(configuration[field])}" in chosen
    obtained = f"{100 * run['test']['accuracy']:.2f} %"
    published = "-" if recipe.published.accuracy is None else f"{100 * recipe.published.accuracy:.2f} %"
    accuracy = next(line for line in out.splitlines() if line.startswith("| accuracy"))
    assert [cell.strip() for cell in accuracy.strip("|").split("|")] == ["accuracy", published, obtained]


def test_without_its_base_a_recipe_runs_on_the_embedded_one_and_says_so(
    sources: dict[str, Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(training.replay, "find_base", hub_without("bert-base-uncased", embedded=tiny_base))
    monkeypatch.setattr("training.assemble.find_base", hub_without(embedded=tiny_base))
    options = Replay(name="seed0-lora-r8-last4", data=sources["stackoverflow"], output=tmp_path / "run", **QUICK)
    replay(options)
    out = capsys.readouterr().out
    assert "base: minilm instead of bert-base-uncased, since 'bert-base-uncased' is neither a folder here" in out
    assert "offline. Name a folder that has it with --base." in out
    assert "differs: layers: 1 instead of 8, 9, 10, 11" in out
    assert "differs: max_length: 40 instead of 512" in out
    assert read_json(tmp_path / "run" / "run.json")["base"]["source"] == "minilm"


def test_the_recipes_own_base_is_taken_where_it_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.replay, "find_base", hub_without(embedded=Path("embedded"), folder=tmp_path))
    tiny = find_recipe("complaints-full")
    assert choose_base(tiny, None) == ("minilm", Path("embedded"))  # the folder has no safetensors
    (tmp_path / "model.safetensors").touch()
    assert choose_base(tiny, None) == ("prajjwal1/bert-tiny", tmp_path)
    assert choose_base(find_recipe("complaints-scratch"), None) == ("bert-base-uncased", tmp_path)


def test_a_base_that_is_asked_for_and_absent_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"the base folder \./nothing does not exist"):
        choose_base(find_recipe("yelp-full"), "./nothing")


@pytest.mark.parametrize(
    ("layers", "published", "fitted"),
    [(12, (8, 9, 10, 11), (8, 9, 10, 11)), (6, (8, 9, 10, 11), (4, 5)), (24, (8, 9, 10, 11), tuple(range(16, 24)))],
)
def test_the_last_third_stays_the_last_third(
    layers: int, published: tuple[int, ...], fitted: tuple[int, ...], tmp_path: Path
) -> None:
    recipe = find_recipe("seed0-lora-r8-last4")
    assert recipe.settings["layers"] == published
    config = {"num_hidden_layers": layers, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = settings_for(recipe, Replay(name=recipe.name), base="x", folder=tmp_path)
    assert (settings["layers"], settings["max_length"], settings["tokens_per_batch"]) == (fitted, 128, 32 * 128)


def test_overrides_reach_the_trainer(sources: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "train_rows": 20,
        "max_length": 12,
        "batch_rows": 4,
        "learning_rate": 1e-2,
        "precision": "bf16",
        "threads": 1,
    }
    options = Replay(name="imdb-lora", data=sources["imdb"], base=str(tiny_base), rank=2.0, output=tmp_path, **given, **QUICK)
    settings = settings_for(find_recipe("imdb-lora"), options, base=str(tiny_base), folder=tiny_base)
    assert (
        settings.items() >= {**given, **QUICK, "rank": 2, "tokens_per_batch": 48, "output": tmp_path, "resume": False}.items()
    )


def test_complaints_are_cleaned_as_published_unless_a_small_file_needs_other_limits(
    sources: dict[str, Path], tiny_base: Path
) -> None:
    recipe, data = find_recipe("complaints-full"), sources["complaints"]
    published = settings_for(recipe, Replay(name=recipe.name, data=data), base="x", folder=tiny_base)
    assert published.items() >= {"sample_frac": 0.1, "class_threshold": 1000, "min_text_length": 10}.items()
    small = settings_for(recipe, Replay(name=recipe.name, data=data, test_rows=16, **SMALL), base="x", folder=tiny_base)
    assert small.items() >= (SMALL | {"test_share": 0.1}).items()  # 160 rows: it was read as it will be trained on
    with pytest.raises(UsageError, match="--class-threshold is 1000, but no product has more than"):
        settings_for(recipe, Replay(name=recipe.name, data=data, test_rows=16), base="x", folder=tiny_base)
    with pytest.raises(UsageError, match="--class-threshold is for complaints, but yelp-head reads yelp"):
        settings_for(find_recipe("yelp-head"), Replay(name="yelp-head", class_threshold=3), base="x", folder=tiny_base)


def test_a_replay_is_tracked_where_it_is_asked_for(sources: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"base": str(tiny_base), "output": tmp_path / "run", "track": "tensorboard"}
    replay(Replay(name="imdb-none", data=sources["imdb"], **given, **QUICK))
    assert list((tmp_path / "runs" / "tensorboard" / "run").glob("events.*"))


def test_many_processes_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = Replay(name="imdb-lora", data=tmp_path / "nothing", base="./nothing")
    with pytest.raises(UsageError, match=r"one process, but WORLD_SIZE is 2; for several, give training\.finetune"):
        replay(options)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UsageError, match=r"the base folder \./nothing does not exist"):
        replay(options)


def test_a_cap_on_the_test_rows_becomes_shares_of_the_data(sources: dict[str, Path], tiny_base: Path) -> None:
    options = Replay(name="imdb-lora", data=sources["imdb"], base=str(tiny_base), test_rows=16)
    settings = settings_for(find_recipe("imdb-lora"), options, base=str(tiny_base), folder=tiny_base)
    assert (settings["test_share"], settings["validation_share"]) == (0.1, 0.05)  # of 160 rows
    options = Replay(name="yelp-head", data=sources["yelp"], base=str(tiny_base))
    settings = settings_for(find_recipe("yelp-head"), options, base=str(tiny_base), folder=tiny_base)
    assert (settings["test_share"], settings["validation_share"]) == (1 / 6, 1 / 12)  # 2,000 are more than there are


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rank": 0.2}, r"--rank: LoRA rank is 0\.2; .* not a share of the weights\); to train a share .* imdb-masked"),
        ({"rank": 0.0}, "--rank: LoRA rank is 0; it must be an integer of at least 1"),
        ({"rank": float("nan")}, "--rank: LoRA rank is nan; it must be an integer"),
        ({"rank": float("inf")}, "--rank: LoRA rank is inf; it must be an integer"),
        ({"test_rows": 1}, "--test-rows is 1; it must be at least 2"),
        ({"name": None}, "name a recipe, or pass --count-only"),
    ],
)
def test_an_option_out_of_range_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Replay(**({"name": "imdb-lora"} | changes))


@pytest.mark.skipif("BERT_TEST_DATA" not in os.environ, reason="BERT_TEST_DATA names no folder of real data")
def test_the_real_complaints_have_the_nine_products_of_the_published_project(tiny_base: Path, tmp_path: Path) -> None:
    data = Path(os.environ["BERT_TEST_DATA"]) / "cfpb_complaints" / "train.csv.gz"
    given: dict[str, Any] = {"train_rows": 60, "test_rows": 100, "threads": 1} | SMALL
    replay(Replay(name="complaints-lora", data=data, base=str(tiny_base), output=tmp_path / "run", **given, **QUICK))
    run = read_json(tmp_path / "run" / "run.json")
    assert len(run["data"]["labels"]) == find_recipe("complaints-lora").num_labels == 9
    assert run["data"]["parts"]["train"]["rows"] == 60
    assert 80 <= run["test"]["samples"] <= 120


def test_a_rank_is_for_lora_alone(tiny_base: Path) -> None:
    with pytest.raises(UsageError, match="--rank is 4, but yelp-full has no LoRA: its strategy is full"):
        settings_for(find_recipe("yelp-full"), Replay(name="yelp-full", rank=4.0), base="x", folder=tiny_base)


def test_a_recipe_without_its_data_leaves_no_folder(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dataset imdb needs --data FILE"):
        replay(Replay(name="imdb-lora", base=str(tiny_base), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_share_for_a_rank_on_the_command_line_ends_with_code_2() -> None:
    command = [sys.executable, "-m", "training.replay", "imdb-lora", "--rank", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "error: --rank: LoRA rank is 0.2; it must be an integer of at least 1" in done.stderr
