"""Deduplicate a batch: equal texts are encoded once and their vector is copied. Pure.

Two texts are equal if their tokens are, including those of a prompt, and the number of tokens that
pooling skips. Their jobs may differ in all that is done to a vector afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.contract.outcomes import Matrix
from worker.encoder.tokens import TokenBlock
from worker.engine.encode import Fault


@dataclass(frozen=True, slots=True)
class Distinct:
    """The different texts of a batch."""

    #: In the order of their first occurrence.
    block: TokenBlock
    #: int64 (texts of the batch,): the row of each text in `block`; None if all differ.
    rows: NDArray[np.int64] | None = None

    @property
    def repeats(self) -> int:
        """Texts of the batch that need no forward pass."""
        return 0 if self.rows is None else len(self.rows) - len(self.block)

    def spread(
        self, vectors: Matrix, faults: Mapping[int, Fault]
    ) -> tuple[Matrix, Mapping[int, Fault]]:
        """The vectors and faults of the whole batch, from those of `block`."""
        if self.rows is None:
            return vectors, faults
        rows: list[int] = self.rows.tolist() if faults else []
        return vectors[self.rows], {
            place: faults[row] for place, row in enumerate(rows) if row in faults
        }


def distinct(block: TokenBlock) -> Distinct:
    """The different texts of `block`."""
    ids, width = block.ids.tobytes(), block.ids.itemsize
    offsets = (block.offsets * width).tolist()
    rows_by_text: dict[tuple[bytes, int], int] = {}
    rows = [
        rows_by_text.setdefault((ids[start:stop], skip), len(rows_by_text))
        for start, stop, skip in zip(offsets, offsets[1:], block.skip.tolist(), strict=False)
    ]
    if len(rows_by_text) == len(rows):
        return Distinct(block)
    _, places = np.unique(rows, return_index=True)
    return Distinct(_subset(block, places), np.asarray(rows))


def _subset(block: TokenBlock, places: NDArray[np.int64]) -> TokenBlock:
    """Texts `places` of a block, as a block of their own."""
    lengths = block.lengths[places]
    offsets = np.zeros(len(places) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    sources = np.arange(offsets[-1]) + np.repeat(block.offsets[places] - offsets[:-1], lengths)
    return TokenBlock(block.ids[sources], offsets, block.skip[places], block.truncated[places])
