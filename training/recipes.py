"""Every published fine-tuning configuration that `training.replay` runs again, as data.

A recipe holds what its source published (`options`, under the names of `training.finetune.Finetune`), what had to be
chosen because the source does not say (`chosen`), and the published figures. Nothing is trained or read here.

Sources, under the names that the recipes use:

    Stack Overflow system   github.com/alexriggio/BERT-LoRA-TensorRT, notebooks: closed questions, LoRA from scratch
    Yelp study              blog post: six fine-tuning strategies of bert-base-cased on yelp_polarity
    complaints project      github.com/msmrexe/pytorch-lora-from-scratch: consumer complaints, nine products
    IMDB article            article: "LoRA" with r=0.2 for bert-base-cased on IMDB reviews
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from contract.command import UsageError
from training.published import Published, Recipe

_BASE_UNCASED = {"vocab_size": 30522}
_BASE_CASED = {"vocab_size": 28996}
_TINY = {
    "vocab_size": 30522,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}

_STACKOVERFLOW = {
    "epochs": 5,
    "batch_rows": 32,
    "max_length": 512,
    "schedule": "constant",
    "warmup_share": 0.0,
    "precision": "fp32",
    "dropout": 0.0,
    "validation_share": 0.1,
    "test_share": 0.1,
    "seed": 42,
}
_STACKOVERFLOW_FULL = {**_STACKOVERFLOW, "learning_rate": 5e-6}
_QUERY_VALUE = ("query", "value")
_STACKOVERFLOW_LORA = {**_STACKOVERFLOW, "learning_rate": 5e-4, "targets": _QUERY_VALUE, "lora_dropout": 0.1}

_YELP_CHOSEN = {"epochs": 3, "batch_rows": 16, "max_length": 256, "dropout": 0.1, "validation_share": 1 / 12}
_YELP_ROWS = {"train_rows": 10_000, "test_share": 1 / 6}

_COMPLAINTS = {"epochs": 3, "batch_rows": 16, "max_length": 512, "test_share": 0.2, "seed": 42}
_COMPLAINTS_CHOSEN = {"dropout": 0.1, "schedule": "constant", "warmup_share": 0.0, "validation_share": 0.1}
_SIMULATED = "The source titles its table «(Simulated) Results»: its scores are unverified."

_IMDB_CHOSEN = {"batch_rows": 16, "max_length": 256, "dropout": 0.1, "validation_share": 0.1, "test_share": 0.2}
_IMDB_ROWS = {"train_rows": 25_000}
_NOT_A_RANK = (
    "The article writes r=0.2, a share of the weights. LoRA's rank is an integer, the inner dimension of the update: "
    "here 1, the nearest, with the article's alpha of 1. Training 20 % of the weights, as its text describes, is imdb-masked."
)


_SOURCES: Mapping[str, Mapping[str, Any]] = {
    "stackoverflow": {"base": "bert-base-uncased", "architecture": _BASE_UNCASED},
    "yelp": {"base": "bert-base-cased", "architecture": _BASE_CASED, "options": _YELP_ROWS, "test_rows": 2000},
    "complaints": {"base": "prajjwal1/bert-tiny", "architecture": _TINY, "num_labels": 9, "chosen": _COMPLAINTS_CHOSEN},
    "imdb": {"base": "bert-base-cased", "architecture": _BASE_CASED, "options": _IMDB_ROWS, "chosen": _IMDB_CHOSEN},
}
_TITLES = {
    "stackoverflow": "the published Stack Overflow system",
    "yelp": "the published Yelp study of six strategies",
    "complaints": "the published consumer complaints project",
    "imdb": "the published IMDB article",
}


def _recipe(name: str, alias: str, what: str, **rest: Any) -> Recipe:
    """A recipe of the source whose data set begins its name, with that source's settings where `rest` has no others."""
    dataset = name.split("-", maxsplit=1)[0]
    settings = {**_SOURCES[dataset], **rest}
    return Recipe(name=name, alias=alias, replays=f"{what}; {_TITLES[dataset]}.", dataset=dataset, **settings)  # type: ignore[arg-type]


RECIPES: tuple[Recipe, ...] = (
    _recipe(
        "stackoverflow-bert-base-full",
        "seed0-bert-base",
        "bert-base-uncased, every weight trained",
        strategy="full",
        options=_STACKOVERFLOW_FULL,
        published=Published(
            trainable=109_483_778,
            total=109_483_778,
            loss=0.4594,
            accuracy=0.7857,
            best_epoch=1,
            seconds_per_epoch=48 * 60,
        ),
    ),
    _recipe(
        "stackoverflow-bertoverflow-full",
        "seed0-overflow",
        "BERTOverflow, pre-trained on Stack Overflow with 82,000 word pieces, every weight trained",
        base="jeniya/BERTOverflow",
        architecture={"vocab_size": 82_000},
        strategy="full",
        options=_STACKOVERFLOW_FULL,
        published=Published(trainable=149_018_882, total=149_018_882, loss=0.5061, accuracy=0.7617, best_epoch=3),
    ),
    _recipe(
        "stackoverflow-tabular-full",
        "seed0-tabular",
        "bert-base-uncased beside five numeric features, every weight trained",
        architecture={**_BASE_UNCASED, "num_features": 5},
        strategy="full",
        options={**_STACKOVERFLOW_FULL, "tabular": True},
        published=Published(trainable=109_485_326, total=109_485_326, loss=0.4558, accuracy=0.7887, best_epoch=1),
        remark="The count holds the original head, which the tabular head leaves unused.",
    ),
    _recipe(
        "stackoverflow-lora-r8",
        "seed0-lora-r8",
        "LoRA of rank 8 on query and value",
        strategy="lora",
        options={**_STACKOVERFLOW_LORA, "rank": 8, "alpha": 16.0},
        published=Published(
            trainable=296_450,
            total=109_778_690,
            loss=0.4643,
            accuracy=0.7831,
            best_epoch=1,
            seconds_per_epoch=38 * 60,
        ),
    ),
    _recipe(
        "stackoverflow-lora-r1",
        "seed0-lora-r1",
        "LoRA of rank 1 on query and value",
        strategy="lora",
        options={**_STACKOVERFLOW_LORA, "rank": 1, "alpha": 2.0},
        published=Published(trainable=38_402, total=109_520_642, loss=0.4648, accuracy=0.7809, best_epoch=2),
    ),
    _recipe(
        "stackoverflow-lora-r8-last4",
        "seed0-lora-r8-last4",
        "LoRA of rank 8 on query and value of the last 4 of 12 layers",
        strategy="lora",
        options={**_STACKOVERFLOW_LORA, "rank": 8, "alpha": 16.0, "layers": (8, 9, 10, 11)},
        published=Published(
            trainable=99_842,
            total=109_582_082,
            loss=0.4713,
            accuracy=0.7812,
            best_epoch=4,
            seconds_per_epoch=25 * 60,
        ),
    ),
    _recipe(
        "yelp-none",
        "seed1-none",
        "Nothing trained, the untrained head evaluated",
        strategy="none",
        chosen=_YELP_CHOSEN,
        published=Published(trainable=0, total=108_311_810),
    ),
    _recipe(
        "yelp-head",
        "seed1-head",
        "The head alone trained",
        strategy="head",
        chosen={**_YELP_CHOSEN, "learning_rate": 1e-3},
        published=Published(trainable=1_538, total=108_311_810),
    ),
    _recipe(
        "yelp-first1",
        "seed1-first1",
        "Head and first encoder layer trained",
        strategy="first",
        chosen={**_YELP_CHOSEN, "learning_rate": 5e-5},
        options={**_YELP_ROWS, "k": 1},
        published=Published(trainable=7_089_410, total=108_311_810),
        remark="The study does not say which end «first» means; here it is the input side. Both ends count the same.",
    ),
    _recipe(
        "yelp-first2",
        "seed1-first2",
        "Head and first two encoder layers trained",
        strategy="first",
        chosen={**_YELP_CHOSEN, "learning_rate": 5e-5},
        options={**_YELP_ROWS, "k": 2},
        published=Published(trainable=14_177_282, total=108_311_810),
        remark="The study does not say which end «first» means; here it is the input side. Both ends count the same.",
    ),
    _recipe(
        "yelp-lora-r4",
        "seed1-lora-r4",
        "LoRA of rank 4 on query and value",
        strategy="lora",
        chosen={**_YELP_CHOSEN, "learning_rate": 5e-4},
        options={**_YELP_ROWS, "rank": 4, "targets": _QUERY_VALUE},
        published=Published(trainable=150_532),
        remark="The published count has the head's 1,538 twice: PEFT left the original head trainable beside its copy. "
        "12 x 2 x 4 x (768 + 768) = 147,456, and one head, is 148,994.",
    ),
    _recipe(
        "yelp-full",
        "seed1-full",
        "Every weight trained",
        strategy="full",
        chosen={**_YELP_CHOSEN, "learning_rate": 2e-5},
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
        options={**_COMPLAINTS, "scratch_size": (256, 4, 4, 512), "learning_rate": 5e-5},
        published=Published(trainable=10_122_249, total=10_122_249, weighted_f1=0.8659),
        remark=_SIMULATED,
    ),
    _recipe(
        "complaints-full",
        "seed2-full",
        "BERT-tiny, every weight trained",
        strategy="full",
        options={**_COMPLAINTS, "learning_rate": 2e-5},
        published=Published(trainable=4_386_825, total=4_386_825, weighted_f1=0.8812),
        remark=f"The README's count is 256 less than its own code gives. {_SIMULATED}",
    ),
    _recipe(
        "complaints-lora",
        "seed2-lora",
        "LoRA of rank 8 on query and value of BERT-tiny",
        strategy="lora",
        options={**_COMPLAINTS, "learning_rate": 2e-5, "rank": 8, "alpha": 32.0, "targets": _QUERY_VALUE},
        published=Published(trainable=20_873, weighted_f1=0.8795),
        remark="The README's count does not follow from its code: 2 x 2 x 8 x (128 + 128) = 8,192, and a head of 1,161, "
        f"is 9,353. {_SIMULATED}",
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
        options={**_IMDB_ROWS, "epochs": 30, "alpha": 1.0},
        chosen={**_IMDB_CHOSEN, "rank": 1, "learning_rate": 5e-4, "targets": _QUERY_VALUE},
        published=Published(accuracy=0.853),
        remark=_NOT_A_RANK,
    ),
    _recipe(
        "imdb-masked",
        "seed3-masked",
        "A random 20 % of each weight matrix trained for 30 epochs, which is what its text describes",
        strategy="masked",
        options={**_IMDB_ROWS, "epochs": 30, "mask_share": 0.2},
        chosen={**_IMDB_CHOSEN, "learning_rate": 2e-5},
        published=Published(accuracy=0.853),
        remark="The article calls this LoRA with r=0.2; a random mask is no low-rank update, and its biases stay frozen here.",
    ),
    _recipe(
        "imdb-full",
        "seed3-full",
        "Every weight trained, to check «2-3 times faster»",
        strategy="full",
        chosen={**_IMDB_CHOSEN, "learning_rate": 2e-5, "epochs": 3},
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
