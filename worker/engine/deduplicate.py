"""Deduplicate a batch: equal texts are encoded once and their vector is copied. Pure.

Two texts are equal if their tokens are, including those of a prompt, and the number of tokens that
pooling skips. Their jobs may differ in all that is done to a vector afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.contract.results import Matrix
from worker.encoder.tokens import TokenBlock
from worker.engine.encode import Fault

# Odd constants of the golden ratio and of xxHash, to spread ids and positions over 64 bits.
_ID, _POSITION, _MIX = (
    np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)
)


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
    if _all_differ(block):
        return Distinct(block)
    ids, offsets, skips = block.ids.tobytes(), block.offsets.tolist(), block.skip.tolist()
    width = block.ids.itemsize
    first: dict[tuple[bytes, int], int] = {}
    kept: list[int] = []
    rows = np.empty(len(block), dtype=np.int64)
    for place, skip in enumerate(skips):
        text = ids[offsets[place] * width : offsets[place + 1] * width]
        row = rows[place] = first.setdefault((text, skip), len(kept))
        if row == len(kept):
            kept.append(place)
    if len(kept) == len(block):
        return Distinct(block)
    return Distinct(block.take(np.asarray(kept)), rows)


def _all_differ(block: TokenBlock) -> bool:
    """Whether no two texts are equal. May return False in error, which costs a comparison."""
    lengths = block.lengths
    if len(block) == 1:
        return True
    if not lengths.all():
        return False
    starts = block.offsets[:-1]
    positions = np.arange(len(block.ids)) - np.repeat(starts, lengths)
    mixed = block.ids.astype(np.uint64) * _ID ^ positions.astype(np.uint64) * _POSITION
    mixed *= _MIX
    mixed ^= mixed >> np.uint64(32)
    keys = np.add.reduceat(mixed, starts)
    return len(np.unique(keys)) == len(keys)
