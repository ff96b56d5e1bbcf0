"""Groups of texts by length: exact, whole, and never parting equal lengths."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from worker.packing import GroupCost, group_by_length


def total(lengths: list[int], stops: list[int], cost: GroupCost) -> float:
    starts = [0, *stops[:-1]]
    return sum(
        cost.fixed + (stop - start) * cost.of_row(lengths[stop - 1])
        for start, stop in zip(starts, stops, strict=True)
    )


def cheapest(lengths: list[int], cost: GroupCost) -> float:
    """The best of all ways to cut, by trying every one."""
    inner = range(1, len(lengths))
    return min(
        total(lengths, [*cuts, len(lengths)], cost)
        for size in range(len(lengths))
        for cuts in combinations(inner, size)
    )


@pytest.mark.parametrize("fixed", [0.0, 5.0, 48.0, 400.0, 1e6])
@pytest.mark.parametrize("knee", [8.0, 64.0, 1e9])
def test_groups_cost_what_the_best_of_all_groupings_costs(fixed: float, knee: float) -> None:
    cost, random = GroupCost(fixed, knee), Random(int(fixed + knee))
    for _ in range(25):
        lengths = sorted(random.randint(1, random.choice((4, 40, 300))) for _ in range(9))
        stops = group_by_length(lengths, cost)
        assert total(lengths, stops, cost) == pytest.approx(cheapest(lengths, cost))


@pytest.mark.parametrize(
    ("lengths", "fixed", "stops"),
    [
        ([], 10.0, []),
        ([7], 10.0, [1]),
        ([3, 3, 3], 0.0, [3]),
        ([2, 2, 500], 10.0, [2, 3]),
        ([10, 11, 12, 500, 505], 100.0, [3, 5]),
        ([1, 2, 3], 0.0, [1, 2, 3]),
        ([1, 2, 3], 1e6, [3]),
        ([0, 0, 5], 1.0, [2, 3]),
    ],
)
def test_groups_of(lengths: list[int], fixed: float, stops: list[int]) -> None:
    assert group_by_length(lengths, GroupCost(fixed, knee=1e9)) == stops


def test_equal_lengths_stay_together_and_every_text_is_in_a_group() -> None:
    random = Random(5)
    lengths = sorted(random.randint(1, 30) for _ in range(500))
    stops = group_by_length(lengths, GroupCost(fixed=3.0))
    assert stops[-1] == len(lengths)
    assert stops == sorted(set(stops))
    for stop in stops[:-1]:
        assert lengths[stop - 1] < lengths[stop]
