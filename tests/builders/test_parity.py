"""`builders.parity`: what is not the checkpoint's equal is caught, whichever way it is wrong.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from builders.parity import LOGIT_BOUND, Engine, Float32, Int32, Parity, made_up_batches, measure_parity, text_batches
from contract.tensors import MAX_BATCH_SIZE
from tests.tiny import random_bert, random_encoded, tiny_config
from training.batches import Encoded
from training.bert import BertForSequenceClassification

MODEL = random_bert(tiny_config(), seed=9)
PROBE = random_encoded(30, MODEL.config)


@torch.inference_mode()
def right(ids: Int32, mask: Int32) -> Float32:
    """The checkpoint itself."""
    logits: Float32 = MODEL(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    return logits


def measure(engine: Engine, probe: Encoded = PROBE) -> Parity:
    return measure_parity(engine, MODEL, probe)


def test_the_checkpoint_equals_itself() -> None:
    parity = measure(right)
    assert parity.failures == []
    assert (parity.max_abs, parity.mean_abs, parity.label_agreement) == (0.0, 0.0, 1.0)
    assert parity.texts == 30
    assert parity.shapes == [ids.shape for ids, _ in made_up_batches(MODEL)]
    assert parity.bound == LOGIT_BOUND


@pytest.mark.parametrize("offset", [0.9, -0.9])
def test_a_difference_below_the_bound_passes_and_is_measured(offset: float) -> None:
    parity = measure(lambda ids, mask: right(ids, mask) + np.float32(offset * LOGIT_BOUND))
    assert parity.failures == []
    assert parity.max_abs == pytest.approx(0.9 * LOGIT_BOUND, rel=0.05)
    assert parity.mean_abs == pytest.approx(0.9 * LOGIT_BOUND, rel=0.05)


def other_weights() -> Engine:
    other = random_bert(tiny_config(), seed=10)
    return lambda ids, mask: other(torch.from_numpy(ids), torch.from_numpy(mask)).detach().numpy()


def one_weight_off() -> Engine:
    other = random_bert(tiny_config(), seed=9)
    other.bert.encoder.get_parameter("layer.1.attention.self.key.weight").data[3, 4] += 0.1
    return lambda ids, mask: other(torch.from_numpy(ids), torch.from_numpy(mask)).detach().numpy()


def too_far() -> Engine:
    return lambda ids, mask: right(ids, mask) + np.float32(1.2 * LOGIT_BOUND)


def not_a_number() -> Engine:
    return lambda ids, mask: np.full_like(right(ids, mask), np.nan)


def not_a_number_in_one_place() -> Engine:
    def engine(ids: Int32, mask: Int32) -> Float32:
        logits = right(ids, mask)
        if len(ids) == MAX_BATCH_SIZE:
            logits[17, 1] = np.nan
        return logits

    return engine


def infinite() -> Engine:
    return lambda ids, mask: right(ids, mask) * np.float32(np.inf)


def right_at_batch_1_only() -> Engine:
    return lambda ids, mask: np.repeat(right(ids[:1], mask[:1]), len(ids), axis=0)


def blind_to_the_mask() -> Engine:
    return lambda ids, mask: right(ids, np.ones_like(mask))


def blind_to_fully_padded_rows() -> Engine:
    def engine(ids: Int32, mask: Int32) -> Float32:
        logits = right(ids, mask)
        logits[mask.sum(1) == 0] = np.nan
        return logits

    return engine


def blind_beyond_20_tokens() -> Engine:
    return lambda ids, mask: right(ids[:, :20], mask[:, :20])


def rows_in_another_order() -> Engine:
    return lambda ids, mask: right(ids, mask)[::-1]


def classes_in_another_order() -> Engine:
    return lambda ids, mask: right(ids, mask)[:, ::-1]


def wrong_at_one_token() -> Engine:
    return lambda ids, mask: right(ids, mask) + np.float32(ids.shape[1] == 1)


def wrong_at_the_last_position() -> Engine:
    last = MODEL.config.max_position_embeddings
    return lambda ids, mask: right(ids, mask) + np.float32(ids.shape[1] == last)


@pytest.mark.parametrize(
    "make",
    [
        other_weights,
        one_weight_off,
        too_far,
        not_a_number,
        not_a_number_in_one_place,
        right_at_batch_1_only,
        blind_to_the_mask,
        blind_to_fully_padded_rows,
        blind_beyond_20_tokens,
        rows_in_another_order,
        classes_in_another_order,
        wrong_at_one_token,
        wrong_at_the_last_position,
    ],
)
def test_a_wrong_engine_is_caught(make: Callable[[], Engine]) -> None:
    assert any(failure.startswith("logits differ by up to ") for failure in measure(make()).failures)


def test_infinite_logits_are_caught() -> None:
    parity = measure(infinite())
    assert parity.max_abs == np.inf
    assert parity.failures


def test_a_failure_says_how_far_and_how_many() -> None:
    failures = measure(lambda ids, mask: -right(ids, mask)).failures
    assert len(failures) == 2
    assert failures[0].endswith("allowed 0.0001")
    assert failures[1].startswith("labels agree on ")
    assert failures[1].endswith("% of 30 texts, wanted all")


def test_another_label_is_no_failure_only_where_the_best_two_are_closer_than_the_bound() -> None:
    tied = random_bert(tiny_config(num_labels=2), seed=9)
    with torch.no_grad():
        tied.classifier.weight[1] = tied.classifier.weight[0]
        tied.classifier.bias[:] = torch.tensor([0.0, 0.5 * LOGIT_BOUND])

    @torch.inference_mode()
    def swapped(ids: Int32, mask: Int32) -> Float32:
        logits: Float32 = tied(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()[:, ::-1]
        return logits

    assert measure_parity(swapped, tied, PROBE).failures == []
    with torch.no_grad():
        tied.classifier.bias[1] = 3 * LOGIT_BOUND
    assert len(measure_parity(swapped, tied, PROBE).failures) == 2


def test_a_wrong_label_alone_is_a_failure() -> None:
    parity = Parity(shapes=[], texts=1000, max_abs=0.0, mean_abs=0.0, label_agreement=0.999)
    assert parity.failures == ["labels agree on 99.9000% of 1000 texts, wanted all"]
    assert dataclasses.replace(parity, label_agreement=1.0).failures == []


@pytest.mark.parametrize("positions", [1, 12, 40, 70])
def test_made_up_batches_reach_from_one_token_to_the_last_position_and_to_the_largest_batch(positions: int) -> None:
    model = BertForSequenceClassification(tiny_config(max_position_embeddings=positions))
    batches = list(made_up_batches(model))
    shapes = [ids.shape for ids, _ in batches]
    assert min(tokens for _, tokens in shapes) == 1
    assert max(tokens for _, tokens in shapes) == positions
    assert {1, MAX_BATCH_SIZE} <= {rows for rows, _ in shapes}
    for ids, mask in batches:
        assert (str(ids.dtype), str(mask.dtype), mask.shape) == ("int32", "int32", ids.shape)
        assert ids.min() >= 0
        assert ids.max() < model.config.vocab_size
        lengths = mask.sum(1)
        assert lengths[0] == ids.shape[1]
        assert (lengths[-1] == 0) == (len(ids) > 1)


def test_every_held_out_text_is_compared() -> None:
    seen: set[tuple[int, ...]] = set()

    def engine(ids: Int32, mask: Int32) -> Float32:
        seen.update(tuple(row[kept == 1].tolist()) for row, kept in zip(ids, mask, strict=True))
        return right(ids, mask)

    measure(engine)
    assert {tuple(row) for row in PROBE.ids} <= seen


def test_texts_come_by_rising_length_each_once_and_no_more_at_a_time_than_a_server_sends() -> None:
    probe = Encoded([[2, 3], [2, 5, 3]] * 70, [], [False] * 140)
    batches = text_batches(probe, pad_token_id=0)
    assert [len(rows) for rows, _ in batches] == [64, 64, 12]
    assert sorted(row for rows, _ in batches for row in rows) == list(range(140))
    for rows, (ids, mask) in batches:
        assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == [probe.ids[row] for row in rows]
