"""Groups of texts of similar length, with the least padding; row counts of few sizes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class GroupCost:
    """The cost of a group of n texts, padded to the longest length L, in tokens.

    `fixed + n * L * (1 + L / knee)`: the call itself, one unit for each cell of the rectangle, and
    attention, which grows with the square of the length and is the largest part above `knee`
    tokens.
    """

    fixed: float
    knee: float = 64.0

    def of_row(self, length: int) -> float:
        """Cost of one text in a group that is padded to `length` tokens."""
        return length * (1.0 + length / self.knee)


def few_sizes(tokens: int) -> int:
    """Round a number of rows up, by at most 1 / 32 or one row, to one of few sizes.

    oneDNN makes kernels for each number of rows and each layer. They take as long as about 20
    tokens, and 2.4 MB in a model of 384 dimensions. It caches the kernels of the last 1,024
    products, enough for four products in all sizes up to 4,096 tokens.
    """
    step = max(1 << max(tokens.bit_length() - 6, 0), 2)
    return -(-tokens // step) * step


def group_by_length(lengths: Sequence[int] | NDArray[np.integer], cost: GroupCost) -> list[int]:
    """Cut texts, sorted by length, into the groups that cost least together.

    `lengths` (n,) ascending. Returns the stops of the groups, ascending, the last one n; group g
    is the texts `stops[g - 1]` (or 0) to `stops[g]`. No texts give no groups.

    A dynamic program over the distinct lengths: the best split of the texts up to length j is the
    best split up to a shorter length i, and one group from there to j. Texts of one length stay
    together, since a split only adds another `fixed`. Exact, and fast: the search for i stops when
    padding a single length to j costs more than a group of its own.
    """
    ordered = np.asarray(lengths, dtype=np.int64)
    if not len(ordered):
        return []
    firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
    distinct: list[int] = ordered[firsts].tolist()
    edges: list[int] = [*firsts.tolist(), len(ordered)]
    row_costs = [cost.of_row(length) for length in distinct]

    best = [0.0]
    starts: list[int] = []
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
        starts.append(cheapest_start)
    return [edges[end] for end in _ends(starts)]


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

    `lengths` (n,) ascending. A group holds 1, 2, 4, 8, … texts, padded to a `padded_length`, and at
    most `most_cells` cells unless it is a single text. `limit`: the longest padded length, None for
    the longest text. So shapes recur: about 150 of them cover texts of up to 256 tokens. Groups of
    any shape hold half as much padding. A dynamic program over texts.
    """
    ordered: list[int] = np.asarray(lengths).tolist()
    if limit is None:
        limit = max(ordered, default=0)
    padded = [min(padded_length(length), max(limit, length)) for length in ordered]
    best = [0.0]
    starts: list[int] = []
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
        starts.append(stop - size)
    return [Shaped(end, padded[end - 1]) for end in _ends(starts)]


def padded_length(length: int) -> int:
    """Round a length up to a multiple of 2, 4 above 32 tokens, 8 above 64, and 16 above 128."""
    step = 2 if length <= 32 else 4 if length <= 64 else 8 if length <= 128 else 16
    return -(-length // step) * step


def _ends(starts: list[int]) -> list[int]:
    """Ends of the groups of a split, ascending: `starts[end - 1]` begins the group before `end`."""
    ends = []
    end = len(starts)
    while end:
        ends.append(end)
        end = starts[end - 1]
    return ends[::-1]
