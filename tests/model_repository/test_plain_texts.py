"""Texts of plain ASCII are tokenized by words, from memory: the ids are those of the tokenizer itself, whatever the text."""

from __future__ import annotations

import argparse
import inspect
import json
import random
import string
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tests.model_repository.loader import load_module
from tests.training.csv_files import needs_real_data, read, real_file
from training.pretrained import find_base, load_tokenizer

MAX_LENGTH = 48
CHARACTERS = [chr(code) for code in range(128)]  # all of ASCII, control characters and DEL among them


@pytest.fixture(scope="module")
def module() -> Any:
    return load_module("bert_tokenizer")


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    """The embedded base's, of 30,522 pieces, cut as training cuts."""
    return load_tokenizer(find_base("minilm"), max_length=MAX_LENGTH)


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    """A copy with another tokenizer.json."""
    saved = json.loads(tokenizer.to_str())
    change(saved)
    return Tokenizer.from_str(json.dumps(saved))


def plain(module: Any, tokenizer: Tokenizer) -> Any:
    """What reads plain texts for this tokenizer."""
    return module.plain_reader(tokenizer, json.loads(tokenizer.to_str()), MAX_LENGTH)


def compare(reader: Any, tokenizer: Tokenizer, texts: list[str]) -> int:
    """How many of the texts the reader takes; what it makes of them is what the tokenizer makes of them."""
    taken = 0
    for text in texts:
        if found := reader(text):
            expected = tokenizer.encode(text)
            assert found == (expected.ids, bool(expected.overflowing)), repr(text)
            taken += 1
    return taken


def random_text(generator: random.Random, vocabulary: list[str]) -> str:
    """Characters, pieces of the vocabulary and words of up to 130 letters, run together or with spaces between."""
    drawn: list[Callable[[], str]] = [
        lambda: generator.choice(CHARACTERS),
        lambda: generator.choice(vocabulary).removeprefix("##"),
        lambda: generator.choice(string.punctuation + string.whitespace),
        lambda: generator.choice(string.ascii_letters) * generator.choice((1, 2, 99, 100, 101, 130)),
        lambda: "".join(generator.choices(string.ascii_letters + string.digits, k=generator.randint(1, 12))),
    ]
    between = generator.choice(["", " ", " ", "  ", "\n"])
    return between.join(generator.choice(drawn)() for _ in range(generator.randint(0, 60)))


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_texts_give_the_ids_of_the_tokenizer(module: Any, minilm: Tokenizer, seed: int, lowercase: bool) -> None:
    tokenizer = changed(minilm, lambda saved: saved["normalizer"].update(lowercase=lowercase))
    generator, vocabulary = random.Random(seed), sorted(minilm.get_vocab())
    texts = [random_text(generator, vocabulary) for _ in range(800)]
    taken = compare(plain(module, tokenizer), tokenizer, texts)
    assert 80 < taken < 720, "both those that are plain and those that are not"


def test_code_and_prose_give_the_ids_of_the_tokenizer(module: Any, minilm: Tokenizer) -> None:
    texts = [part for source in (argparse, inspect, tarfile) for part in inspect.getsource(source).split("\n\n")]
    assert compare(plain(module, minilm), minilm, texts) > 0.98 * len(texts) > 1000


@needs_real_data
@pytest.mark.parametrize(
    ("name", "folder"),
    [("stackoverflow", "stackoverflow_closed_questions"), ("yelp", "yelp_reviews_10k")],
)
def test_real_texts_give_the_ids_of_the_tokenizer(module: Any, minilm: Tokenizer, name: str, folder: str) -> None:
    texts = read(real_file(folder), name=name).texts[:3000]
    assert compare(plain(module, minilm), minilm, list(texts)) > 0.6 * len(texts)


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "a\u00a0b", "cat\x07", "cat\x7f", "cat\x0btree", "\ufffd", "cat [SEP] tree", "[MASK]"]
)
def test_what_is_not_plain_is_left_to_the_tokenizer(module: Any, minilm: Tokenizer, text: str) -> None:
    assert plain(module, minilm)(text) is None


@pytest.mark.parametrize("text", ["", " ", "A cat.", "[sep] [SEP ] SEP]", "a\r\n\tb", "~!@_#", "x" * 101, "cat " * 200])
def test_what_is_plain_needs_no_tokenizer(module: Any, minilm: Tokenizer, text: str) -> None:
    assert compare(plain(module, minilm), minilm, [text]) == 1


def test_a_tokenizer_of_other_parts_reads_every_text_itself(module: Any, minilm: Tokenizer) -> None:
    def whitespace(saved: dict[str, Any]) -> None:
        saved["pre_tokenizer"] = {"type": "Whitespace"}

    def no_normalizer(saved: dict[str, Any]) -> None:
        saved["normalizer"] = None

    spelled = Tokenizer.from_str(minilm.to_str())
    spelled.add_tokens([AddedToken("caf\u00e9", normalized=True)])  # is found in "cafe" too
    short = Tokenizer.from_str(minilm.to_str())
    short.enable_truncation(2)  # leaves no room for a word
    for tokenizer in (changed(minilm, whitespace), changed(minilm, no_normalizer), spelled, short):
        assert plain(module, tokenizer)("a cat") is None


def test_a_token_of_the_users_own_is_not_split(module: Any, minilm: Tokenizer) -> None:
    own = Tokenizer.from_str(minilm.to_str())
    own.add_special_tokens(["<code>"])
    texts = ["see <code> here", "see < code > here"]
    assert compare(plain(module, own), own, texts) == 1


def test_no_more_words_are_remembered_than_allowed(module: Any, minilm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS_KEPT", 8)
    texts = [f"word{number} and again word{number - 3}" for number in range(100)]
    assert compare(plain(module, minilm), minilm, texts) == 100
