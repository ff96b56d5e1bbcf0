"""Groups of texts by length: exact, whole; equal lengths stay together."""

from __future__ import annotations

from itertools import accumulate, combinations, product
from random import Random

import pytest

from worker.encoder.packing import (
    GroupCost,
    Shaped,
    few_sizes,
    group_by_length,
    group_in_few_shapes,
    padded_length,
)


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


def sizes(groups: list[Shaped]) -> list[int]:
    stops = [0, *(group.stop for group in groups)]
    return [group.stop - before for before, group in zip(stops, groups, strict=False)]


def shaped_total(lengths: list[int], counts: tuple[int, ...], cost: GroupCost) -> float:
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return sum(
        cost.fixed + count * cost.of_row(padded_length(lengths[end - 1]))
        for count, end in zip(counts, ends, strict=True)
    )


@pytest.mark.parametrize("fixed", [0.0, 12.0, 200.0])
@pytest.mark.parametrize("most_cells", [64, 512])
def test_groups_of_few_shapes_cost_what_the_best_of_them_costs(
    fixed: float, most_cells: int
) -> None:
    cost, random = GroupCost(fixed, 512.0), Random(int(fixed + most_cells))
    for _ in range(15):
        lengths = sorted(random.randint(1, random.choice((4, 40, 256))) for _ in range(8))
        ways = [
            counts
            for number in range(1, 9)
            for counts in product((1, 2, 4, 8), repeat=number)
            if sum(counts) == 8
            and all(
                count == 1 or count * padded_length(lengths[stop - 1]) <= most_cells
                for count, stop in zip(counts, accumulate(counts), strict=True)
            )
        ]
        found = group_in_few_shapes(lengths, cost, most_cells, 256)
        best = min(shaped_total(lengths, counts, cost) for counts in ways)
        assert shaped_total(lengths, tuple(sizes(found)), cost) == pytest.approx(best)


def test_whatever_texts_come_their_shapes_come_again() -> None:
    random, shapes = Random(5), set()
    for _ in range(200):
        lengths = sorted(min(int(random.lognormvariate(3.3, 1)) + 3, 256) for _ in range(80))
        groups = group_in_few_shapes(lengths, GroupCost(12.0, 512.0), 512, 256)
        assert groups[-1].stop == 80
        assert all(lengths[group.stop - 1] <= group.length for group in groups)
        shapes |= set(zip(sizes(groups), (group.length for group in groups), strict=True))
    assert len(shapes) < 160
    assert {size for size, _ in shapes} <= {1, 2, 4, 8, 16, 32, 64}


def test_no_text_is_padded_beyond_the_limit_and_without_one_beyond_the_longest() -> None:
    cost = GroupCost(12.0, 512.0)
    assert group_in_few_shapes([70, 73], cost, 512, 77) == [Shaped(2, 77)]
    assert group_in_few_shapes([65, 69], cost, 512) == [Shaped(2, 69)]
    assert group_in_few_shapes([], cost, 512) == []


def test_few_sizes_are_no_smaller_and_little_larger_than_what_they_are_for() -> None:
    for tokens in range(1, 5000):
        size = few_sizes(tokens)
        assert tokens <= size <= max(tokens + 1, tokens * 33 / 32)
        assert few_sizes(size) == size


def test_few_sizes_leave_room_for_four_products_of_each_in_onednns_cache() -> None:
    assert len({few_sizes(tokens) for tokens in range(1, 4097)}) <= 1024 / 4
