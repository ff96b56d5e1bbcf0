"""A batch cut into rectangles of texts of like length, padded on the right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.packing import GroupCost, group_by_length
from worker.tokens import TokenBlock


class Rectangle(NamedTuple):
    """Texts of a batch that run together, n of them, the longest of L tokens."""

    #: int64 (n,): the place of each in the batch.
    texts: NDArray[np.int64]
    #: int64 (n, L).
    ids: NDArray[np.int64]
    #: bool (n, L): false where it is padding.
    real: NDArray[np.bool_]
    #: Leading tokens that pooling leaves out, the same for all of them.
    skip: int

    @property
    def padding(self) -> int:
        """Cells that hold no token."""
        return int(self.real.size - np.count_nonzero(self.real))


def rectangles(
    batch: TokenBlock, cost: GroupCost, pad_id: int, most_cells: int | None = None
) -> Iterator[Rectangle]:
    """The rectangles of a batch that cost least together, short texts first.

    Those of more than `most_cells` are cut into equal parts; a single text is never cut.
    """
    lengths = batch.lengths
    order = np.lexsort((lengths, batch.skip))
    for texts in _runs(order, batch.skip[order]):
        start = 0
        for stop in group_by_length(lengths[texts], cost):
            group = texts[start:stop]
            cells = len(group) * int(lengths[group[-1]])
            parts = 1 if most_cells is None else min(-(-cells // most_cells), len(group))
            for part in np.array_split(group, parts):
                yield _rectangle(batch, part, pad_id)
            start = stop


def _rectangle(batch: TokenBlock, texts: NDArray[np.int64], pad_id: int) -> Rectangle:
    lengths = batch.lengths[texts]
    at = np.arange(lengths[-1])
    real = at < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = batch.ids[(batch.offsets[texts, None] + at)[real]]
    return Rectangle(texts, ids, real, int(batch.skip[texts[0]]))


def _runs(order: NDArray[np.int64], values: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """`order` cut wherever `values` changes."""
    return np.split(order, np.flatnonzero(np.diff(values)) + 1)
