"""The backoff and the bisection that many callers share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from math import ceil, log2

import pytest

from worker.contract.backoff import Backoff
from worker.contract.bisection import bisect


def test_pauses_double_up_to_the_longest_and_begin_anew() -> None:
    backoff = Backoff(0.5, 3.0)
    for _ in range(2):
        assert list(islice(backoff, 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_pauses_never_end() -> None:
    assert next(islice(Backoff(1.0, 30.0), 5_000, None)) == 30.0


@pytest.mark.parametrize("seed", range(50))
def test_exactly_the_items_that_fail_are_found(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randrange(40)
    faulty = {item for item in range(size) if chance.random() < chance.choice([0.0, 0.1, 0.9])}
    calls = 0

    def call(items: Sequence[int]) -> list[int] | ValueError:
        nonlocal calls
        calls += 1
        return ValueError(items) if faulty & set(items) else [-item for item in items]

    found = list(bisect(range(size), call))
    assert [item for _, items, _ in found for item in items] == list(range(size))
    assert all(items[0] == start for start, items, _ in found)
    failed = [items for _, items, answer in found if isinstance(answer, ValueError)]
    assert [list(items) for items in failed] == [[item] for item in sorted(faulty)]
    for _, items, answer in found:
        assert isinstance(answer, ValueError) or answer == [-item for item in items]
    assert calls <= 1 + 2 * len(faulty) * ceil(log2(size or 1))


def test_no_items_are_no_call() -> None:
    assert list(bisect([], len)) == []
