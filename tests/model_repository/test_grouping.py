"""How `bert_engine/1/model.py` cuts the rows of a batch into calls, and takes padding off and puts it on."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest


def engine_of(module: Any, step: int, positions: int = 512) -> Any:
    """The lengths of an engine; it is never called."""
    return module.Engine(None, step, positions)


def columns_of(engine: Any, rows: int, length: int) -> int:
    """The length that is computed for so many rows of this one."""
    return int(engine.length([length] * rows))


def random_lengths(seed: int) -> list[int]:
    generator = random.Random(seed)
    longest = generator.choice([4, 60, 512])
    return [generator.randint(1, longest) for _ in range(generator.randint(1, 200))]


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_in_one_group_and_groups_keep_their_limit(module: Any, seed: int, step: int) -> None:
    lengths, engine = random_lengths(seed), engine_of(module, step)
    groups = module.group_rows(lengths, engine)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[row] for row in group]
        assert inside == sorted(inside)
        assert len(group) * columns_of(engine, len(group), inside[-1]) <= module.MAX_TOKENS or len(group) == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 8, 12, 16, 64])
def test_an_engine_that_keeps_kernels_computes_few_numbers_of_tokens(module: Any, rows: int) -> None:
    engine = engine_of(module, 8)
    for length in range(1, 513):
        columns = columns_of(engine, rows, length)
        assert columns >= length
        assert columns % 8 == 0
        assert columns == columns_of(engine, rows, columns)  # what is filled up is not filled up again
        filled = -(-length // 8) * 8
        if rows == 1 or rows * filled <= 256:
            assert columns == filled
        elif columns < 512:
            assert rows * columns % 64 == 0
            assert columns - filled < 64
    assert columns_of(engine_of(module, 1), rows, 77) == 77


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_no_row_is_filled_beyond_the_positions(module: Any, rows: int) -> None:
    assert columns_of(engine_of(module, 8, 60), rows, 59) == 60


def cost_of(module: Any, groups: list[list[int]], lengths: list[int], engine: Any) -> int:
    """Tokens computed, padding and all, and a fixed number a call."""
    return sum(len(group) * columns_of(engine, len(group), lengths[group[-1]]) + int(module.CALL_TOKENS) for group in groups)


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("seed", range(12))
def test_no_other_cut_of_the_sorted_rows_costs_less(module: Any, seed: int, step: int) -> None:
    generator, engine = random.Random(seed), engine_of(module, step, 900)
    lengths = [generator.randint(1, generator.choice([30, 90, 900])) for _ in range(9)]
    order = sorted(range(9), key=lengths.__getitem__)
    cuts = [cut_at(order, chosen) for chosen in itertools.product([False, True], repeat=8)]
    allowed = [cut for cut in cuts if all(fits(module, group, lengths, engine) for group in cut)]
    least = min(cost_of(module, cut, lengths, engine) for cut in allowed)
    assert cost_of(module, module.group_rows(lengths, engine), lengths, engine) == least


def fits(module: Any, group: list[int], lengths: list[int], engine: Any) -> bool:
    """Whether a group is one call."""
    tokens = len(group) * columns_of(engine, len(group), lengths[group[-1]])
    return len(group) == 1 or tokens <= int(module.MAX_TOKENS)


def cut_at(order: list[int], chosen: tuple[bool, ...]) -> list[list[int]]:
    """`order` cut behind the places where `chosen` is True."""
    groups = [[order[0]]]
    for row, begins in zip(order[1:], chosen, strict=True):
        if begins:
            groups.append([])
        groups[-1].append(row)
    return groups


@pytest.mark.parametrize(("step", "mean"), [(1, 4.6), (8, 4.95)])  # the second has the quartiles of Stack Overflow's questions
def test_padding_is_below_3_percent_of_the_tokens_of_texts_of_mixed_length(module: Any, step: int, mean: float) -> None:
    engine = engine_of(module, step, 256)
    lengths = np.random.default_rng(0).lognormal(mean, 0.8, 3200).clip(8, 256).astype(int).tolist()
    batches = [lengths[start : start + 32] for start in range(0, len(lengths), 32)]
    computed = sum(
        len(group) * columns_of(engine, len(group), batch[group[-1]])
        for batch in batches
        for group in module.group_rows(batch, engine)
    )
    assert sum(lengths) / computed > 0.97


def test_equal_rows_share_one_group_up_to_the_token_limit(module: Any) -> None:
    assert module.group_rows([16] * 64, engine_of(module, 8)) == [list(range(64))]
    assert sorted(len(group) for group in module.group_rows([512] * 20, engine_of(module, 8))) == [4] * 5


def test_a_row_longer_than_the_token_limit_gets_a_group_of_its_own(module: Any) -> None:
    assert module.group_rows([5000, 4999], engine_of(module, 8, 5000)) == [[1], [0]]


def test_a_row_alone_is_a_group(module: Any) -> None:
    assert module.group_rows([300], engine_of(module, 8)) == [[0]]


def test_no_rows_make_no_groups(module: Any) -> None:
    assert module.group_rows([], engine_of(module, 8)) == []


def test_packing_and_stripping_undo_each_other(module: Any) -> None:
    rows = [np.arange(1, length + 1, dtype=np.int32) for length in (3, 1, 5)]
    ids, mask = module.pack_group(rows, 5)
    assert ids.tolist() == [[1, 2, 3, 0, 0], [1, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert (ids.dtype, mask.dtype) == (np.int32, np.int32)
    assert [row.tolist() for row in module.strip_padding(ids, mask)] == [row.tolist() for row in rows]


BAD_MASKS: dict[str, Any] = {
    "a gap": [[1, 0, 1, 0]],
    "padding on the left": [[0, 1, 1, 1]],
    "a row of padding only": [[1, 1, 1, 1], [0, 0, 0, 0]],
    "a value that is not 0 or 1": [[2, 0, 0, 0]],
    "values that sum to a length": [[2, -1, 1, 0]],
    "a negative value": [[-1, 0, 0, 0]],
    "no tokens at all": [[]],
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_bad_mask_is_refused(module: Any, name: str) -> None:
    mask = np.array(BAD_MASKS[name], dtype=np.int32)
    with pytest.raises(ValueError, match="ones and then zeros"):
        module.strip_padding(np.ones_like(mask), mask)


@pytest.mark.parametrize("shape", [(1, 3), (1, 5), (2, 4)])
def test_a_mask_of_another_shape_is_refused(module: Any, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must have the shape of input_ids"):
        module.strip_padding(np.ones((1, 4), np.int32), np.ones(shape, np.int32))
