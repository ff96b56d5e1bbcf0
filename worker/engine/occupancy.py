"""The slots for every lane: the idle ones, and the batches of the others."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from worker.contract.lanes import Lane
from worker.engine.job import Piece


class _Running(NamedTuple):
    """A batch: its tokens, its start and the tenants of its interactive texts."""

    tokens: int
    began: float
    tenants: set[str]


class Occupancy:
    """The state of some slots. The engine's lock guards it; the caller of any method holds it."""

    def __init__(self, slots: int) -> None:
        #: The number of slots.
        self.count = slots
        #: Slots that wait for texts.
        self.idle = 0
        self._running: dict[object, _Running] = {}
        #: Tokens a second of the last batch that ended, 0.0 before the first.
        self._rate = 0.0

    def rest(self, slot: object) -> None:
        """A slot waits for texts."""
        self.idle += 1
        ran = self._running.pop(slot, None)
        if ran is not None and ran.tokens:
            self._rate = ran.tokens / max(time.monotonic() - ran.began, 1e-6)

    def run(self, slot: object, pieces: Sequence[Piece]) -> None:
        """A slot runs these pieces, or other work if the list is empty."""
        self.idle -= 1
        tenants = {piece.job.tenant for piece in pieces if piece.job.lane is Lane.INTERACTIVE}
        tokens = sum(piece.tokens for piece in pieces)
        self._running[slot] = _Running(tokens, time.monotonic(), tenants)

    @property
    def tenants(self) -> set[str]:
        """The tenants with interactive texts in running batches."""
        return set[str]().union(*(one.tenants for one in self._running.values()))

    def share(self, waiting: int) -> int:
        """Return the tokens of a batch with which all slots finish at about the same time.

        `waiting`: tokens that wait.
        """
        now = time.monotonic()
        left = sum(
            max(one.tokens - self._rate * (now - one.began), 0.0) for one in self._running.values()
        )
        return max(math.ceil((waiting + left) / self.count), 1)
