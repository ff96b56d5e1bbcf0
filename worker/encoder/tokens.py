"""Tokenized texts as flat arrays, to cut and join batches without a loop over texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Tokens of n texts back to back.

    `ids` int32 (T,); `offsets` int64 (n + 1,), text i is `ids[offsets[i]:offsets[i + 1]]`,
    special tokens included; `skip` int32 (n,): leading tokens that pooling leaves out (a prompt
    that is not pooled over); `truncated` bool (n,): cut at the model's limit.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    skip: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, int64 (n,)."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        """Tokens of all texts together."""
        return int(self.offsets[-1] - self.offsets[0])

    def slice(self, start: int, stop: int) -> TokenBlock:
        """Texts `start` to `stop`, without copying tokens."""
        first, last = int(self.offsets[start]), int(self.offsets[stop])
        return TokenBlock(
            self.ids[first:last],
            self.offsets[start : stop + 1] - first,
            self.skip[start:stop],
            self.truncated[start:stop],
        )

    @staticmethod
    def join(blocks: Sequence[TokenBlock]) -> TokenBlock:
        """All texts of `blocks`, in order, as one block. At least one block."""
        if len(blocks) == 1:
            return blocks[0]
        starts = np.cumsum([0] + [block.tokens for block in blocks[:-1]])
        offsets = [blocks[0].offsets[:1]] + [
            block.offsets[1:] + start for block, start in zip(blocks, starts, strict=True)
        ]
        return TokenBlock(
            np.concatenate([block.ids for block in blocks]),
            np.concatenate(offsets),
            np.concatenate([block.skip for block in blocks]),
            np.concatenate([block.truncated for block in blocks]),
        )
