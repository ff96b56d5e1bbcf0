"""Positions of the texts in a packed batch, and the rectangles that compute its attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from worker.encoder.packing import GroupCost, group_by_length
from worker.encoder.tokens import TokenBlock


@dataclass(slots=True)
class Group:
    """Adjacent texts of a packed batch that attend as one rectangle (texts, length).

    Tokens `start` to `stop` of the batch. If the lengths differ, `lengths` int64 (texts,) states
    them, `padded` int64 (texts * length,) the token in each cell (any token in a padding cell),
    and `real` int64 (stop - start,) the cells with a token. Else all three are None.
    """

    start: int
    stop: int
    texts: int
    length: int
    lengths: torch.Tensor | None = None
    padded: torch.Tensor | None = None
    real: torch.Tensor | None = None
    _masks: dict[tuple[bool, int | None], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, causal: bool, window: int | None) -> torch.Tensor | None:
        """Keys that each query attends to: bool, broadcasting to (texts, heads, length, length).

        None if no mask is needed: all keys are real, or causality hides the padding, which comes
        last. `window`: the distance that hides a key. Made once a batch, since layers share masks.
        """
        if window is not None and window >= self.length:
            window = None
        key = (causal, window)
        if key not in self._masks:
            self._masks[key] = self._make_mask(causal, window)
        return self._masks[key]

    def _make_mask(self, causal: bool, window: int | None) -> torch.Tensor | None:
        if window is None and (causal or self.lengths is None):
            return None
        device = self.lengths.device if self.lengths is not None else None
        at = torch.arange(self.length, device=device)
        mask: torch.Tensor | None = None
        if self.lengths is not None:
            mask = (at < self.lengths[:, None])[:, None, None, :]
        if window is not None:
            distance = at[:, None] - at[None, :]
            near = (distance < window) & (distance >= 0 if causal else distance > -window)
            mask = near[None, None] if mask is None else mask & near
            # A padding query must attend to at least one key, else its row becomes NaN.
            mask = mask | torch.eye(self.length, dtype=torch.bool, device=device)
        return mask


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A batch as one sequence of T tokens, its n texts back to back, shortest first."""

    #: int64 (1, T).
    ids: torch.Tensor
    #: int64 (1, T), counting from 0 in each text.
    positions: torch.Tensor
    #: int32 (n + 1,): the first token of each text, and T.
    offsets: torch.Tensor
    #: int64 (n,): the index of each text in the original batch.
    order: NDArray[np.int64]
    #: Tokens of each text, and its leading tokens that are not pooled, int64 (n,).
    lengths: NDArray[np.int64]
    skip: NDArray[np.int64]
    #: The rectangles of its attention; empty for one variable-length kernel.
    groups: tuple[Group, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths[-1])


def pack(batch: TokenBlock, cost: GroupCost | None, device: torch.device) -> PackedBatch:
    """Lay out a batch, with the groups that cost least (`cost` None: without groups)."""
    lengths = batch.lengths
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    everywhere = np.arange(offsets[-1])
    positions = everywhere - np.repeat(offsets[:-1], lengths)
    came_from = positions + np.repeat(batch.offsets[order], lengths)
    groups = () if cost is None else tuple(_groups(lengths, offsets, cost, device))
    ids = batch.ids[came_from].astype(np.int64)
    return PackedBatch(
        torch.from_numpy(ids).to(device).unsqueeze(0),
        torch.from_numpy(positions).to(device).unsqueeze(0),
        torch.from_numpy(offsets.astype(np.int32)).to(device),
        order,
        lengths,
        batch.skip[order].astype(np.int64),
        groups,
    )


def _groups(
    lengths: NDArray[np.int64], offsets: NDArray[np.int64], cost: GroupCost, device: torch.device
) -> Iterator[Group]:
    first = 0
    for stop in group_by_length(lengths, cost):
        longest = int(lengths[stop - 1])
        group = Group(int(offsets[first]), int(offsets[stop]), stop - first, longest)
        if lengths[first] != longest:
            own = lengths[first:stop, None]
            at = np.arange(longest)
            starts = (offsets[first:stop] - offsets[first])[:, None]
            padded = (starts + np.minimum(at, own - 1)).ravel()
            group.lengths = torch.from_numpy(lengths[first:stop]).to(device)
            group.padded = torch.from_numpy(padded).to(device)
            group.real = torch.from_numpy(np.flatnonzero(at < own)).to(device)
        yield group
        first = stop
