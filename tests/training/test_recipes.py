"""`training.recipes` and what `training.replay --count-only` makes of it: every published count, exactly."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import training.replay
from contract.command import UsageError
from training.options import Finetune
from training.published import OF_DATASET, OF_STRATEGY, READ, TRAINED, Recipe
from training.recipes import RECIPES, find_recipe
from training.replay import Replay, count, count_table, list_recipes, main

COUNTS = {  # alias: trainable, total
    "seed0-bert-base": (109_483_778, 109_483_778),
    "seed0-overflow": (149_018_882, 149_018_882),
    "seed0-tabular": (109_485_326, 109_485_326),
    "seed0-lora-r8": (296_450, 109_778_690),
    "seed0-lora-r1": (38_402, 109_520_642),
    "seed0-lora-r8-last4": (99_842, 109_582_082),
    "seed1-none": (0, 108_311_810),
    "seed1-head": (1_538, 108_311_810),
    "seed1-first1": (7_089_410, 108_311_810),
    "seed1-first2": (14_177_282, 108_311_810),
    "seed1-lora-r4": (148_994, 108_459_266),
    "seed1-full": (108_311_810, 108_311_810),
    "seed2-scratch": (10_122_249, 10_122_249),
    "seed2-full": (4_387_081, 4_387_081),
    "seed2-lora": (9_353, 4_395_273),
    "seed3-lora": (38_402, 108_348_674),
    "seed3-none": (0, 108_311_810),
    "seed3-full": (108_311_810, 108_311_810),
}
NOT_AS_PUBLISHED = {"seed1-lora-r4": 150_532, "seed2-full": 4_386_825, "seed2-lora": 20_873}


@pytest.mark.parametrize("alias", COUNTS)
def test_the_parameters_of_every_recipe_are_counted_exactly(alias: str) -> None:
    recipe = find_recipe(alias)
    assert count(recipe) == COUNTS[alias]
    if alias in NOT_AS_PUBLISHED:
        assert recipe.published.trainable == NOT_AS_PUBLISHED[alias]
        assert f"{COUNTS[alias][0]:,}" in recipe.remark or "256 less" in recipe.remark
    elif recipe.published.trainable is not None:
        assert (recipe.published.trainable, recipe.published.total) == COUNTS[alias]


def test_the_masked_recipe_trains_a_fifth_of_every_linear_weight_and_the_head() -> None:
    sizes = [768 * 768] * 4 + [768 * 3072] * 2
    assert (
        count(find_recipe("seed3-masked"))[0] == 12 * sum(round(0.2 * size) for size in sizes) + round(0.2 * 768 * 768) + 1538
    )


def test_every_alias_is_counted_above_and_names_are_unique() -> None:
    assert {recipe.alias for recipe in RECIPES} == {*COUNTS, "seed3-masked"}
    names = [name for recipe in RECIPES for name in (recipe.name, recipe.alias)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_setting_is_one_that_the_trainer_accepts(recipe: Recipe) -> None:
    settings = recipe.settings
    made = dataclasses.asdict(Finetune(output=Path("new"), data=Path("file"), **settings))
    assert {name: made[name] for name in settings} == settings


def test_the_published_hyper_parameters_stand() -> None:
    full, lora, one = (find_recipe(f"seed0-{name}").settings for name in ("bert-base", "lora-r8", "lora-r1"))
    assert (full["learning_rate"], lora["learning_rate"]) == (5e-6, 5e-4)
    assert (lora["alpha"], one["alpha"], lora["lora_dropout"], lora["dropout"]) == (16.0, 2.0, 0.1, 0.0)
    assert [find_recipe(f"seed0-{name}").settings["dropout"] for name in ("bert-base", "overflow", "tabular")] == [0.1] * 3
    assert (full["schedule"], full["warmup_share"], full["epochs"], full["max_length"]) == ("constant", 0.0, 5, 512)
    assert find_recipe("seed1-head").settings["train_rows"] == 10_000
    assert find_recipe("seed1-head").test_rows == 2000
    scratch, tiny = (find_recipe(f"seed2-{name}").settings for name in ("scratch", "lora"))
    assert (scratch["learning_rate"], tiny["learning_rate"], tiny["alpha"], tiny["epochs"]) == (5e-5, 2e-5, 32.0, 3)
    assert find_recipe("seed3-lora").settings["epochs"] == 30
    for name in ("scratch", "full", "lora"):
        cleaned = find_recipe(f"seed2-{name}").settings
        assert (cleaned["sample_frac"], cleaned["class_threshold"], cleaned["min_text_length"]) == (0.1, 1000, 10)
        assert (cleaned["precision"], cleaned["weight_decay"], cleaned["dropout"]) == ("fp32", 0.0, 0.1)


PUBLISHED = {  # alias: macro F1, best epoch counted from 1, seconds per epoch
    "seed0-bert-base": (0.7855, 2, 2909),
    "seed0-overflow": (0.7616, 4, 2847),
    "seed0-tabular": (0.7887, 2, 2892),
    "seed0-lora-r8": (0.7831, 2, 2313),
    "seed0-lora-r1": (0.7808, 3, 2305),
    "seed0-lora-r8-last4": (0.7811, 5, 1529),
}


@pytest.mark.parametrize("alias", PUBLISHED)
def test_the_published_figures_of_the_stack_overflow_system_stand(alias: str) -> None:
    recipe = find_recipe(alias)
    published = recipe.published
    assert (published.f1, published.best_epoch, published.seconds_per_epoch) == PUBLISHED[alias]
    assert recipe.rows == {"train": 112_217, "validation": 14_027, "test": 14_028}
    assert recipe.options["epochs"] >= PUBLISHED[alias][1]


def test_what_no_option_of_ours_can_replay_is_named() -> None:
    system, complaints = find_recipe("seed0-lora-r8").otherwise, find_recipe("seed2-full").otherwise
    assert any("clipped to a norm of 1, which the source does not do" in line for line in system)
    assert any("the source decays every trained parameter" in line for line in system)
    assert any("the source takes the highest weighted F1 on the test part" in line for line in complaints)
    assert set(complaints) < set(find_recipe("seed2-lora").otherwise)


def test_every_field_of_the_trainer_either_decides_a_run_or_does_not() -> None:
    """A new field must be put on one side, or a recipe would be silent about it."""
    others = {"output", "dataset", "data", "text", "label", "drop_empty", "base", "strategy", "tabular", "tokens_per_batch"}
    others |= {
        "truncation_side",
        "log_features",
        "keep_head",
        "max_positions",
        "heads",
        "cache_prefix",
        "device",
        "threads",
        "resume",
        "save_every_s",
        "track",
    }
    deciding = {*READ, *TRAINED, *(name for group in (OF_STRATEGY, OF_DATASET) for names in group.values() for name in names)}
    assert deciding.isdisjoint(others)
    assert deciding | others == {field.name for field in dataclasses.fields(Finetune)}


@pytest.mark.parametrize(
    ("alias", "names"),
    [
        ("seed0-lora-r8", ""),
        ("seed0-bert-base", ""),
        ("seed2-full", "validation_share"),
        ("seed3-none", "max_length precision seed validation_share test_share"),
        (
            "seed1-lora-r4",
            "max_length precision seed validation_share epochs batch_rows learning_rate schedule warmup_share weight_decay "
            "dropout alpha rslora lora_dropout",
        ),
    ],
)
def test_every_setting_that_the_source_leaves_open_is_listed(alias: str, names: str) -> None:
    assert find_recipe(alias).left_open == names.split()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_is_chosen_here_is_nothing_that_the_source_gives(recipe: Recipe) -> None:
    assert recipe.chosen.keys().isdisjoint(recipe.options)
    if recipe.strategy != "none":
        assert set(recipe.chosen) <= set(recipe.left_open)


def test_a_name_and_its_alias_are_one_recipe_and_another_name_meets_the_closest() -> None:
    assert find_recipe("seed0-lora-r8") is find_recipe("stackoverflow-lora-r8")
    with pytest.raises(UsageError, match=r"no recipe 'yelp-lora-4'; did you mean yelp-lora-r4 or .*--list shows all 19"):
        find_recipe("yelp-lora-4")
    with pytest.raises(UsageError, match=r"no recipe 'zzz'; python -m training.replay --list"):
        find_recipe("zzz")


def test_a_share_for_a_rank_is_explained() -> None:
    assert "a share of the weights" in find_recipe("imdb-lora").remark
    assert "imdb-masked" in find_recipe("imdb-lora").remark
    assert find_recipe("imdb-masked").settings["mask_share"] == 0.2


def test_differences_name_what_departs_from_the_recipe() -> None:
    recipe = find_recipe("seed0-lora-r8-last4")
    same = {**recipe.settings, "layers": [8, 9, 10, 11], "targets": ["query", "value"], "base": "models/bert-base-uncased/"}
    assert recipe.differences(same) == []
    changed = {**same, "base": "minilm", "layers": [4, 5], "learning_rate": 1e-3, "threads": 2}
    assert recipe.differences(changed) == [
        "base: minilm instead of bert-base-uncased",
        "layers: 4, 5 instead of 8, 9, 10, 11",
        "learning_rate: 0.001 instead of 0.0005",
    ]
    everywhere = find_recipe("seed0-lora-r8")
    assert everywhere.differences({"layers": [1]})[-1] == "layers: 1 instead of all"


def test_fewer_rows_than_published_are_a_difference_and_shares_are_none() -> None:
    recipe = find_recipe("yelp-head")
    configuration = {**recipe.settings, "test_share": 0.01, "validation_share": 0.005, "train_rows": 500}
    parts = {"train": {"rows": 500}, "validation": {"rows": 40}, "test": {"rows": 80}}
    assert recipe.differences(configuration) == []
    assert recipe.differences(configuration, parts) == [
        "train: 500 rows instead of 10,000",
        "test: 80 rows instead of 2,000",
    ]
    assert recipe.differences(recipe.settings, {"train": {"rows": 10_000}, "test": {"rows": 2_001}}) == []


def test_a_cap_is_named_too_where_the_source_gives_no_number_of_rows() -> None:
    recipe = find_recipe("complaints-lora")
    configuration = {**recipe.settings, "targets": ["query", "value"], "train_rows": 60, "test_share": 0.05}
    assert recipe.differences(configuration, {"train": {"rows": 60}, "test": {"rows": 100}}) == [
        "train_rows: 60 instead of all",
        "test: fewer rows than the published part of the same data",
    ]


def test_the_table_has_published_and_counted_side_by_side_and_the_reasons() -> None:
    text = count_table(tuple(find_recipe(name) for name in ("yelp-lora-r4", "yelp-none")))
    line = next(line for line in text.splitlines() if line.startswith("| yelp-lora-r4"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "yelp-lora-r4",
        "150,532",
        "148,994",
        "",
        "108,459,266",
        "0.14 %",
    ]
    assert "yelp-lora-r4: The published count has the head's 1,538 twice" in text


def test_the_list_names_every_recipe_with_its_alias() -> None:
    lines = list_recipes().splitlines()
    assert [line.split()[:2] for line in lines] == [[recipe.name, recipe.alias] for recipe in RECIPES]


@pytest.mark.parametrize(("name", "rows"), [("complaints-full", 1), ("all", 2), (None, 2)])
def test_counting_prints_one_recipe_or_all(
    name: str | None, rows: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.replay, "RECIPES", (find_recipe("complaints-full"), find_recipe("yelp-head")))
    main(Replay(name=name, count_only=True))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == rows + 2
    assert "4,387,081" in table[2]


def test_the_command_counts() -> None:
    command = [sys.executable, "-m", "training.replay", "seed2-full", "--count-only"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4,387,081" in done.stdout
    assert "4,386,825" in done.stdout


def test_an_unknown_name_is_refused_by_every_way_of_asking() -> None:
    for options in (Replay(name="seed9", count_only=True), Replay(name="seed9")):
        with pytest.raises(UsageError, match=r"there is no recipe 'seed9'; did you mean"):
            main(options)
