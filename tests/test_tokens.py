"""Blocks of tokenized texts, cut and joined."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from worker.encoder.tokens import TokenBlock


def block_of(lengths: list[int], first: int = 0) -> TokenBlock:
    count = len(lengths)
    return TokenBlock(
        np.arange(first, first + sum(lengths), dtype=np.int32),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.arange(count, dtype=np.int32),
        np.array([length > 5 for length in lengths], dtype=np.bool_),
    )


def rows(block: TokenBlock) -> list[tuple[list[int], int, bool]]:
    """Each text: its tokens, the number of tokens that pooling skips, whether it was cut."""
    bounds = block.offsets.tolist()
    return [
        (block.ids[start:stop].tolist(), int(block.skip[at]), bool(block.truncated[at]))
        for at, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def test_a_block_knows_its_texts_and_tokens() -> None:
    block = block_of([3, 0, 9])
    assert len(block) == 3
    assert block.tokens == 12
    assert block.lengths.tolist() == [3, 0, 9]


def test_a_slice_holds_its_texts_and_shares_their_tokens() -> None:
    block = block_of([3, 0, 9, 2])
    part = block.slice(1, 3)
    assert rows(part) == rows(block)[1:3]
    assert part.offsets[0] == 0
    assert part.tokens == 9
    assert np.shares_memory(part.ids, block.ids)
    assert len(block.slice(2, 2)) == 0


def test_joined_slices_are_the_block() -> None:
    block = block_of([3, 0, 9, 2, 1])
    joined = TokenBlock.join([block.slice(0, 2), block.slice(2, 3), block.slice(3, 5)])
    assert rows(joined) == rows(block)


def test_a_single_block_is_joined_without_a_copy() -> None:
    block = block_of([3, 2])
    assert TokenBlock.join([block]) is block


@pytest.mark.parametrize("seed", range(20))
def test_any_slices_join_to_their_texts_with_the_types_of_a_block(seed: int) -> None:
    dice = random.Random(seed)
    blocks = [
        block_of([dice.randint(0, 9) for _ in range(dice.randint(1, 8))], 100 * number)
        for number in range(4)
    ]
    parts = []
    for _ in range(dice.randint(1, 6)):
        block = dice.choice(blocks)
        start = dice.randint(0, len(block))
        parts.append(block.slice(start, dice.randint(start, len(block))))
    joined = TokenBlock.join(parts)
    assert rows(joined) == [row for part in parts for row in rows(part)]
    assert (joined.ids.dtype, joined.offsets.dtype) == (np.int32, np.int64)
    assert (joined.skip.dtype, joined.truncated.dtype) == (np.int32, np.bool_)
