"""`training.batches`: every row once, within the budget, padded right, truncation told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from training.batches import Encoded, collate, encode, plan_batches
from training.pretrained import load_tokenizer


def random_lengths(rows: int, *, seed: int = 0) -> list[int]:
    """Of 1 to 128 tokens, most of them short."""
    generator = random.Random(seed)
    return [min(128, 1 + int(generator.expovariate(1 / 30))) for _ in range(rows)]


def padded_tokens(batches: list[list[int]], lengths: list[int]) -> int:
    """Tokens that a model computes on, padding included."""
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("rows", [1, 7, 3000])
@pytest.mark.parametrize("budget", [128, 500, 4096])
def test_every_row_is_in_exactly_one_batch_within_the_budget(rows: int, budget: int, seed: int | None) -> None:
    lengths = random_lengths(rows)
    batches = plan_batches(lengths, tokens_per_batch=budget, shuffle_seed=seed)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert all(len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("rows", [1, 7, 3000])
@pytest.mark.parametrize("cap", [1, 5, 16])
def test_a_cap_on_the_rows_holds_beside_the_budget(rows: int, cap: int, seed: int | None) -> None:
    lengths = random_lengths(rows)
    batches = plan_batches(lengths, tokens_per_batch=500, shuffle_seed=seed, batch_rows=cap)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert max(map(len, batches)) == min(cap, rows)
    assert all(len(batch) * max(lengths[row] for row in batch) <= 500 for batch in batches)


def test_a_cap_that_no_batch_reaches_changes_nothing() -> None:
    lengths = random_lengths(300)
    plans = [plan_batches(lengths, tokens_per_batch=512, shuffle_seed=0, batch_rows=cap) for cap in (None, 513)]
    assert plans[0] == plans[1]


def test_capped_batches_in_training_order_still_pad_little() -> None:
    lengths = random_lengths(20_000)
    batches = plan_batches(lengths, tokens_per_batch=10**6, shuffle_seed=0, batch_rows=16)
    assert padded_tokens(batches, lengths) < 1.1 * sum(lengths)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_text_longer_than_the_budget_has_a_batch_of_its_own(seed: int | None) -> None:
    lengths = [5, 90, 5, 70, 5, 5]
    batches = plan_batches(lengths, tokens_per_batch=64, shuffle_seed=seed)
    assert sorted(map(sorted, batches)) == [[0, 2, 4, 5], [1], [3]]


def test_no_texts_make_no_batches() -> None:
    assert plan_batches([], tokens_per_batch=64, shuffle_seed=None) == []
    assert plan_batches([], tokens_per_batch=64, shuffle_seed=0) == []


def test_batches_are_as_full_as_the_budget_allows() -> None:
    batches = plan_batches([8] * 100, tokens_per_batch=64, shuffle_seed=None)
    assert [len(batch) for batch in batches] == [8] * 12 + [4]


def test_the_evaluation_order_pads_least_and_the_training_order_pads_little() -> None:
    lengths = random_lengths(20_000)
    evaluation = padded_tokens(plan_batches(lengths, tokens_per_batch=1024, shuffle_seed=None), lengths)
    training = padded_tokens(plan_batches(lengths, tokens_per_batch=1024, shuffle_seed=0), lengths)
    unsorted = padded_tokens([list(range(start, start + 16)) for start in range(0, 20_000, 16)], lengths)
    assert sum(lengths) <= evaluation <= 1.01 * sum(lengths)
    assert evaluation < training < 1.05 * sum(lengths)
    assert unsorted > 2 * sum(lengths), "lengths so alike that the order made no difference"


def test_the_training_order_is_drawn_from_the_seed_and_is_not_sorted() -> None:
    lengths = random_lengths(2000)
    plans = [plan_batches(lengths, tokens_per_batch=512, shuffle_seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    longest = [max(lengths[row] for row in batch) for batch in plans[0]]
    assert longest != sorted(longest)
    assert plan_batches(lengths, tokens_per_batch=512, shuffle_seed=None)[0] != plans[0][0]


def test_batches_of_one_sorting_window_do_not_come_from_short_to_long() -> None:
    lengths = random_lengths(200)
    batches = plan_batches(lengths, tokens_per_batch=512, shuffle_seed=0)
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest != sorted(longest)
    plain = plan_batches(lengths, tokens_per_batch=512, shuffle_seed=None)
    assert sorted(longest) == [max(lengths[row] for row in batch) for batch in plain], "more than one window"


def test_batches_are_made_of_other_texts_in_every_epoch() -> None:
    lengths = [10] * 1000
    first, second = (
        {frozenset(batch) for batch in plan_batches(lengths, tokens_per_batch=100, shuffle_seed=seed)} for seed in (0, 1)
    )
    assert len(first & second) < 5


def test_rows_are_padded_on_the_right_and_masked_there() -> None:
    encoded = Encoded([[2, 7, 3], [2, 3], [2, 8, 9, 10, 3]], [4, 5, 6], [False] * 3)
    batch = collate(encoded, [2, 1, 0], pad_token_id=11)
    assert batch.attention_mask is not None
    assert batch.input_ids.tolist() == [[2, 8, 9, 10, 3], [2, 3, 11, 11, 11], [2, 7, 3, 11, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert batch.labels.tolist() == [6, 5, 4]
    assert batch.rows == [2, 1, 0]
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}


def test_a_token_that_looks_like_padding_is_not_masked() -> None:
    batch = collate(Encoded([[2, 0, 3], [2]], [0, 0], [False] * 2), [0, 1], pad_token_id=0)
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rows_of_one_length_need_no_mask_and_texts_without_labels_have_none() -> None:
    batch = collate(Encoded([[2, 7, 3], [2, 8, 3]], [], [False] * 2), [0, 1], pad_token_id=0)
    assert batch.attention_mask is None
    assert batch.labels.shape == (0,)
    moved = batch.to(torch.device("meta"))
    assert (moved.input_ids.device.type, moved.attention_mask, moved.rows) == ("meta", None, [0, 1])


def test_texts_are_encoded_in_their_order_and_truncation_is_told(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base, max_length=6)
    texts = ["the cat", "the cat saw we", "the cat saw we near", "", "the cat saw we near the house"]
    encoded = encode(tokenizer, texts, [0, 1, 0, 1, 0])
    words = {word: tokenizer.token_to_id(word) for word in ("[CLS]", "[SEP]", "the", "cat", "saw", "we")}
    full = [words[word] for word in ("[CLS]", "the", "cat", "saw", "we", "[SEP]")]
    assert encoded.ids == [[*full[:3], full[-1]], full, full, [full[0], full[-1]], full]
    assert encoded.truncated == [False, False, True, False, True]
    assert encoded.lengths == [4, 6, 6, 2, 6]
    assert encoded.labels == [0, 1, 0, 1, 0]


def test_more_texts_than_one_chunk_keep_their_order(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base, max_length=8)
    texts = ["cat " * (number % 5) for number in range(1300)]
    encoded = encode(tokenizer, texts, [], progress="tokenizing")
    assert encoded.lengths == [2 + number % 5 for number in range(1300)]
    assert encode(tokenizer, [], []) == Encoded([], [], [])


def test_features_stay_with_their_rows(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base, max_length=8)
    features = [[0.5, -1.0], [2.0, 3.0], [4.0, 1e9]]
    encoded = encode(tokenizer, ["the cat", "a", "we saw"], [0, 1, 0], features=features)
    assert encoded.features is not None
    assert (encoded.features.dtype, encoded.features.tolist()) == (torch.float32, features)
    batch = collate(encoded, [2, 0], pad_token_id=0)
    assert batch.features is not None
    assert batch.features.tolist() == [features[2], features[0]]
    moved = batch.to(torch.device("meta"))
    assert moved.features is not None
    assert moved.features.device.type == "meta"
    assert collate(encode(tokenizer, ["the cat"], []), [0], pad_token_id=0).features is None
