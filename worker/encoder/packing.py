"""Which texts share a rectangle: exact splits of lengths into groups of little padding. Pure.

And how many rows a batch has, where few different numbers are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GroupCost:
    """What computing a group of n texts, padded to the longest length L, costs in token units.

    `fixed + n * L * (1 + L / knee)`: a part for the call itself, one unit for each cell of the
    rectangle, and attention, which grows with the square of the length and outweighs the rest
    from `knee` tokens on.
    """

    fixed: float
    knee: float = 64.0

    def of_row(self, length: int) -> float:
        """Cost of one text of a group whose longest text has `length` tokens."""
        return length * (1.0 + length / self.knee)


def few_sizes(tokens: int) -> int:
    """The number of rows in which to compute so many tokens: no less, at most 1 / 32 more, or one.

    For each number of rows a library may make kernels of its own. oneDNN does, for every layer:
    they take about as long as 20 tokens, and 2.4 MB in a model of 384 dimensions. It keeps those of
    its last 1,024 products, which is room for four products in all sizes up to 4,096 tokens.
    """
    step = max(1 << max(tokens.bit_length() - 6, 0), 2)
    return -(-tokens // step) * step


def group_by_length(lengths: Sequence[int] | NDArray[np.integer], cost: GroupCost) -> list[int]:
    """Cut texts, sorted by length, into the groups that cost least together.

    `lengths` (n,) ascending. Returns the stops of the groups, ascending, the last one n; group g
    is the texts `stops[g - 1]` (or 0) to `stops[g]`. No texts give no groups.

    A dynamic programme over the distinct lengths: the best split of the texts up to length j is
    the best split up to some shorter length i, and one group from there to j. Texts of one length
    are never parted, since that only buys another `fixed`. Exact, and fast because the search
    for i stops where padding a single length to j already costs more than a group of its own.
    """
    ordered = np.asarray(lengths, dtype=np.int64)
    if not len(ordered):
        return []
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    distinct: list[int] = ordered[starts].tolist()
    edges: list[int] = [*starts.tolist(), len(ordered)]
    row_costs = [cost.of_row(length) for length in distinct]

    best = [0.0]
    first: list[int] = []
    for last, row_cost in enumerate(row_costs):
        stop = edges[last + 1]
        cheapest, cheapest_start = float("inf"), last
        for start in range(last, -1, -1):
            padding = (edges[start + 1] - edges[start]) * (row_cost - row_costs[start])
            if padding > cost.fixed:
                break
            total = best[start] + cost.fixed + (stop - edges[start]) * row_cost
            if total < cheapest:
                cheapest, cheapest_start = total, start
        best.append(cheapest)
        first.append(cheapest_start)

    stops = []
    upto = len(distinct)
    while upto:
        stops.append(edges[upto])
        upto = first[upto - 1]
    return stops[::-1]


class Shaped(NamedTuple):
    """A group of texts that ends before `stop`, padded to `length` tokens."""

    stop: int
    length: int


def group_in_few_shapes(
    lengths: Sequence[int] | NDArray[np.integer],
    cost: GroupCost,
    most_cells: int,
    limit: int | None = None,
) -> list[Shaped]:
    """Cut texts, sorted by length, into the groups of a few shapes that cost least together.

    `lengths` (n,) ascending. A group holds 1, 2, 4, 8, … texts, padded to an even length, from 32
    tokens on to one of 4, 8 and 16 times as many (`padded_length`), at most `most_cells` of them
    in all unless it is a single text. `limit`: tokens that no text may be padded beyond, None for
    those of the longest. So whatever texts come, shapes come again, some 150 of them for texts of
    up to 256 tokens; groups of any shape hold half as much padding. A dynamic programme over texts.
    """
    ordered: list[int] = np.asarray(lengths).tolist()
    if limit is None:
        limit = max(ordered, default=0)
    padded = [min(padded_length(length), max(limit, length)) for length in ordered]
    best = [0.0]
    sizes: list[int] = []
    for stop, length in enumerate(padded, start=1):
        row_cost = cost.of_row(length)
        cheapest, size = best[stop - 1] + cost.fixed + row_cost, 1
        count = 2
        while count <= stop and count * length <= most_cells:
            total = best[stop - count] + cost.fixed + count * row_cost
            if total < cheapest:
                cheapest, size = total, count
            count *= 2
        best.append(cheapest)
        sizes.append(size)

    groups = []
    upto = len(ordered)
    while upto:
        groups.append(Shaped(upto, padded[upto - 1]))
        upto -= sizes[upto - 1]
    return groups[::-1]


def padded_length(length: int) -> int:
    """The next length of those that rectangles of few shapes have."""
    step = 2 if length <= 32 else 4 if length <= 64 else 8 if length <= 128 else 16
    return -(-length // step) * step
