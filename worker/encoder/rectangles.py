"""A batch cut into rectangles of texts of similar length, padded on the right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.encoder.packing import GroupCost, Shaped, group_by_length, group_in_few_shapes
from worker.encoder.tokens import TokenBlock


class Rectangle(NamedTuple):
    """Texts of a batch that run together, n of them, padded to L tokens."""

    #: int64 (n,): the index of each text in the batch.
    texts: NDArray[np.int64]
    #: int64 (n, L).
    ids: NDArray[np.int64]
    #: bool (n, L): whether a cell holds a token.
    real: NDArray[np.bool_]
    #: Leading tokens that pooling leaves out, equal for all texts.
    skip: int

    @property
    def padding(self) -> int:
        """Cells without a token."""
        return int(self.real.size - np.count_nonzero(self.real))


def rectangles(batch: TokenBlock, cost: GroupCost, pad_id: int) -> Iterator[Rectangle]:
    """The rectangles of a batch that cost least together, short texts first."""
    for texts, lengths in _sorted(batch):
        stops = group_by_length(lengths, cost)
        groups = [Shaped(stop, int(lengths[stop - 1])) for stop in stops]
        yield from _padded(batch, texts, groups, pad_id)


def recurring_rectangles(
    batch: TokenBlock, cost: GroupCost, pad_id: int, most_cells: int, limit: int | None
) -> Iterator[Rectangle]:
    """Rectangles of few shapes, short texts first; see `group_in_few_shapes`."""
    for texts, lengths in _sorted(batch):
        groups = group_in_few_shapes(lengths, cost, most_cells, limit)
        yield from _padded(batch, texts, groups, pad_id)


def _sorted(batch: TokenBlock) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Texts with the same `skip`, by length, and their lengths."""
    lengths = batch.lengths
    order = np.lexsort((lengths, batch.skip))
    for texts in _runs(order, batch.skip[order]):
        yield texts, lengths[texts]


def _padded(
    batch: TokenBlock, texts: NDArray[np.int64], groups: list[Shaped], pad_id: int
) -> Iterator[Rectangle]:
    start = 0
    for stop, length in groups:
        yield _rectangle(batch, texts[start:stop], length, pad_id)
        start = stop


def _rectangle(batch: TokenBlock, texts: NDArray[np.int64], length: int, pad_id: int) -> Rectangle:
    at = np.arange(length)
    real = at < batch.lengths[texts, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = batch.ids[(batch.offsets[texts, None] + at)[real]]
    return Rectangle(texts, ids, real, int(batch.skip[texts[0]]))


def _runs(order: NDArray[np.int64], values: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Cut `order` at each change of `values`."""
    return np.split(order, np.flatnonzero(np.diff(values)) + 1)
