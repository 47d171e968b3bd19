"""Every published fine-tuning configuration that `training.replay` runs again, as data.

A recipe holds what its source published (`options`, under the names of `training.finetune.Finetune`), what had to be
chosen because the source does not say (`chosen`), what this trainer does otherwise, and the published figures and rows.
What the recipes of a source share is in `training.sources`. Nothing is trained or read here.

Sources, under the names that the recipes use:

    Stack Overflow system   github.com/alexriggio/BERT-LoRA-TensorRT, notebooks: closed questions, LoRA from scratch
    Yelp study              blog post: six fine-tuning strategies of bert-base-cased on yelp_polarity
    complaints project      github.com/msmrexe/pytorch-lora-from-scratch: consumer complaints, nine products
    IMDB article            article: "LoRA" with r=0.2 for bert-base-cased on IMDB reviews
"""

from __future__ import annotations

import difflib
from typing import Any

from contract.command import UsageError
from training.published import Published, Recipe
from training.sources import (
    BASE_UNCASED,
    COMPLAINTS,
    COMPLAINTS_OTHERWISE,
    EVERYWHERE,
    IMDB_CHOSEN,
    IMDB_ROWS,
    NOT_A_RANK,
    PLAIN_LORA,
    SIMULATED,
    SOURCES,
    STACKOVERFLOW_FULL,
    STACKOVERFLOW_LORA,
    TITLES,
    YELP_CHOSEN,
    YELP_ROWS,
)


def _recipe(name: str, alias: str, what: str, **rest: Any) -> Recipe:
    """A recipe of the source whose data set begins its name, with that source's settings where `rest` has no others."""
    dataset = name.split("-", maxsplit=1)[0]
    settings = {**SOURCES[dataset], **rest}
    return Recipe(name=name, alias=alias, replays=f"{what}; {TITLES[dataset]}.", dataset=dataset, **settings)  # type: ignore[arg-type]


RECIPES: tuple[Recipe, ...] = (
    _recipe(
        "stackoverflow-bert-base-full",
        "seed0-bert-base",
        "bert-base-uncased, every weight trained",
        strategy="full",
        options=STACKOVERFLOW_FULL,
        published=Published(
            trainable=109_483_778,
            total=109_483_778,
            loss=0.4594,
            accuracy=0.7857,
            f1=0.7855,
            best_epoch=2,
            seconds_per_epoch=2909,
        ),
    ),
    _recipe(
        "stackoverflow-bertoverflow-full",
        "seed0-overflow",
        "BERTOverflow, pre-trained on Stack Overflow with 82,000 word pieces, every weight trained",
        base="lanwuwei/BERTOverflow_stackoverflow_github",
        architecture={"vocab_size": 82_000},
        strategy="full",
        options=STACKOVERFLOW_FULL,
        published=Published(
            trainable=149_018_882,
            total=149_018_882,
            loss=0.5061,
            accuracy=0.7617,
            f1=0.7616,
            best_epoch=4,
            seconds_per_epoch=2847,
        ),
    ),
    _recipe(
        "stackoverflow-tabular-full",
        "seed0-tabular",
        "bert-base-uncased beside five numeric features, every weight trained",
        architecture={**BASE_UNCASED, "num_features": 5},
        strategy="full",
        options={**STACKOVERFLOW_FULL, "tabular": True},
        published=Published(
            trainable=109_485_326,
            total=109_485_326,
            loss=0.4558,
            accuracy=0.7887,
            f1=0.7887,
            best_epoch=2,
            seconds_per_epoch=2892,
        ),
        remark="The count holds the original head, which the tabular head leaves unused.",
    ),
    _recipe(
        "stackoverflow-lora-r8",
        "seed0-lora-r8",
        "LoRA of rank 8 on query and value",
        strategy="lora",
        options={**STACKOVERFLOW_LORA, "rank": 8, "alpha": 16.0},
        published=Published(
            trainable=296_450, total=109_778_690, loss=0.4643, accuracy=0.7831, f1=0.7831, best_epoch=2, seconds_per_epoch=2313
        ),
    ),
    _recipe(
        "stackoverflow-lora-r1",
        "seed0-lora-r1",
        "LoRA of rank 1 on query and value",
        strategy="lora",
        options={**STACKOVERFLOW_LORA, "rank": 1, "alpha": 2.0},
        published=Published(
            trainable=38_402, total=109_520_642, loss=0.4648, accuracy=0.7809, f1=0.7808, best_epoch=3, seconds_per_epoch=2305
        ),
    ),
    _recipe(
        "stackoverflow-lora-r8-last4",
        "seed0-lora-r8-last4",
        "LoRA of rank 8 on query and value of the last 4 of 12 layers",
        strategy="lora",
        options={**STACKOVERFLOW_LORA, "rank": 8, "alpha": 16.0, "layers": (8, 9, 10, 11)},
        published=Published(
            trainable=99_842, total=109_582_082, loss=0.4713, accuracy=0.7812, f1=0.7811, best_epoch=5, seconds_per_epoch=1529
        ),
    ),
    _recipe(
        "yelp-none",
        "seed1-none",
        "Nothing trained, the untrained head evaluated",
        strategy="none",
        chosen=YELP_CHOSEN,
        published=Published(trainable=0, total=108_311_810),
    ),
    _recipe(
        "yelp-head",
        "seed1-head",
        "The head alone trained",
        strategy="head",
        chosen={**YELP_CHOSEN, "learning_rate": 1e-3},
        published=Published(trainable=1_538, total=108_311_810),
    ),
    _recipe(
        "yelp-first1",
        "seed1-first1",
        "Head and first encoder layer trained",
        strategy="first",
        chosen={**YELP_CHOSEN, "learning_rate": 5e-5},
        options={**YELP_ROWS, "k": 1},
        published=Published(trainable=7_089_410, total=108_311_810),
        remark="The study does not say which end «first» means; here it is the input side. Both ends count the same.",
    ),
    _recipe(
        "yelp-first2",
        "seed1-first2",
        "Head and first two encoder layers trained",
        strategy="first",
        chosen={**YELP_CHOSEN, "learning_rate": 5e-5},
        options={**YELP_ROWS, "k": 2},
        published=Published(trainable=14_177_282, total=108_311_810),
        remark="The study does not say which end «first» means; here it is the input side. Both ends count the same.",
    ),
    _recipe(
        "yelp-lora-r4",
        "seed1-lora-r4",
        "LoRA of rank 4 on query and value",
        strategy="lora",
        chosen={**YELP_CHOSEN, "learning_rate": 5e-4},
        options={**YELP_ROWS, **EVERYWHERE, "rank": 4},
        published=Published(trainable=150_532),
        remark="The published count has the head's 1,538 twice: PEFT left the original head trainable beside its copy. "
        "12 x 2 x 4 x (768 + 768) = 147,456, and one head, is 148,994.",
    ),
    _recipe(
        "yelp-full",
        "seed1-full",
        "Every weight trained",
        strategy="full",
        chosen={**YELP_CHOSEN, "learning_rate": 2e-5},
        published=Published(trainable=108_311_810, total=108_311_810),
    ),
    _recipe(
        "complaints-scratch",
        "seed2-scratch",
        "A small BERT (256 wide, 4 heads, 4 layers, feed-forward 512) from random weights",
        base="bert-base-uncased",
        architecture={
            "vocab_size": 30522,
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 512,
        },
        strategy="scratch",
        options={**COMPLAINTS, "scratch_size": (256, 4, 4, 512), "learning_rate": 5e-5},
        published=Published(trainable=10_122_249, total=10_122_249, weighted_f1=0.8659),
        remark=SIMULATED,
    ),
    _recipe(
        "complaints-full",
        "seed2-full",
        "BERT-tiny, every weight trained",
        strategy="full",
        options={**COMPLAINTS, "learning_rate": 2e-5},
        published=Published(trainable=4_386_825, total=4_386_825, weighted_f1=0.8812),
        remark=f"The README's count is 256 less than its own code gives. {SIMULATED}",
    ),
    _recipe(
        "complaints-lora",
        "seed2-lora",
        "LoRA of rank 8 on query and value of BERT-tiny",
        strategy="lora",
        options={**COMPLAINTS, **PLAIN_LORA, "learning_rate": 2e-5, "rank": 8, "alpha": 32.0, "lora_dropout": 0.0},
        published=Published(trainable=20_873, weighted_f1=0.8795),
        remark="The README's count does not follow from its code: 2 x 2 x 8 x (128 + 128) = 8,192, and a head of 1,161, "
        f"is 9,353. {SIMULATED}",
        otherwise=(
            *COMPLAINTS_OTHERWISE,
            "lora_A: within 0.088, by its inputs, where the source draws it within 0.354, by the rank",
        ),
    ),
    _recipe(
        "imdb-none",
        "seed3-none",
        "The baseline: nothing trained, the untrained head evaluated",
        strategy="none",
        remark="The article's baseline is about 50 %, measured on a subset.",
    ),
    _recipe(
        "imdb-lora",
        "seed3-lora",
        "LoRA on query and value for 30 epochs",
        strategy="lora",
        options={**IMDB_ROWS, "epochs": 30, "alpha": 1.0},
        chosen={**IMDB_CHOSEN, **EVERYWHERE, "rank": 1, "learning_rate": 5e-4},
        published=Published(accuracy=0.853),
        remark=NOT_A_RANK,
    ),
    _recipe(
        "imdb-masked",
        "seed3-masked",
        "A random 20 % of each weight matrix trained for 30 epochs, which is what its text describes",
        strategy="masked",
        options={**IMDB_ROWS, "epochs": 30, "mask_share": 0.2},
        chosen={**IMDB_CHOSEN, "learning_rate": 2e-5},
        published=Published(accuracy=0.853),
        remark="The article calls this LoRA with r=0.2; a random mask is no low-rank update, and its biases stay frozen here.",
    ),
    _recipe(
        "imdb-full",
        "seed3-full",
        "Every weight trained, to check «2-3 times faster»",
        strategy="full",
        chosen={**IMDB_CHOSEN, "learning_rate": 2e-5, "epochs": 3},
        remark="The article says that LoRA is 2-3 times faster; it gives no figures of this run.",
    ),
)


def find_recipe(name: str) -> Recipe:
    """The recipe of a name or alias. Raises `UsageError` with the closest names for any other."""
    known = {key: recipe for recipe in RECIPES for key in (recipe.name, recipe.alias)}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(f"there is no recipe {name!r}; {hint}python -m training.replay --list shows all {len(RECIPES)}")
