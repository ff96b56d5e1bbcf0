"""One batch through the model, whatever one of its texts does to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from worker.contract.results import Matrix
from worker.encoder.protocol import Encoder
from worker.tokens import TokenBlock

logger = logging.getLogger(__name__)


class Fault(NamedTuple):
    """Why a text has no vector: a code and words for people."""

    code: str
    message: str


class DeviceLost(RuntimeError):
    """The device fails on a text it encoded before: no later batch can succeed either."""


@dataclass(slots=True)
class Forward:
    """The model behind one budget. Used by the device thread alone.

    A batch that raises is halved until the culprit is alone; a batch that runs out of memory is
    halved too, and the budget with it, for good.
    """

    encoder: Encoder
    #: Tokens of one forward pass, at most.
    budget: int
    #: A text that the model is known to take, tried when everything fails.
    probe: TokenBlock
    #: Batches that were cut because they raised or ran out of memory.
    splits: int = field(default=0)

    def run(self, block: TokenBlock) -> tuple[Matrix, Mapping[int, Fault]]:
        """Vectors float32 (n, d) and the faults by row; a faulty row holds zeros.

        Raises DeviceLost.
        """
        try:
            vectors = self.encoder.forward(block)
            faults: dict[int, Fault] = {}
        except Exception as error:  # noqa: BLE001 - the texts answer for it, one by one
            self._note(error, block)
            vectors, faults = self._halved(block, error)
            if len(faults) == len(block):
                self._check_device()
        # A sum is finite only if every summand is, and far cheaper than looking at each.
        if not np.isfinite(vectors.sum()):
            for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
                faults[row] = Fault("non_finite_vector", "the model gave no finite vector")
                vectors[row] = 0.0
        return vectors, faults

    def _halved(self, block: TokenBlock, error: Exception) -> tuple[Matrix, dict[int, Fault]]:
        if len(block) == 1:
            empty = np.zeros((1, self.encoder.info.dimensions), dtype=np.float32)
            return empty, {0: self._fault(error)}
        self.splits += 1
        middle = len(block) // 2
        vectors: list[Matrix] = []
        faults: dict[int, Fault] = {}
        for start, stop in ((0, middle), (middle, len(block))):
            half = block.slice(start, stop)
            try:
                rows, found = self.encoder.forward(half), dict[int, Fault]()
            except Exception as inner:  # noqa: BLE001 - as above
                self._note(inner, half)
                rows, found = self._halved(half, inner)
            vectors.append(rows)
            faults |= {start + row: fault for row, fault in found.items()}
        return np.concatenate(vectors), faults

    def _note(self, error: Exception, block: TokenBlock) -> None:
        if not self.encoder.is_out_of_memory(error):
            logger.warning("A batch of %d texts raised %s", len(block), type(error).__name__)
            return
        self.encoder.release_memory()
        if len(block) > 1:
            self.budget = max(min(self.budget, block.tokens) // 2, 1)
            logger.warning(
                "Out of memory at %d tokens; the token budget is now %d", block.tokens, self.budget
            )

    def _fault(self, error: Exception) -> Fault:
        if self.encoder.is_out_of_memory(error):
            return Fault("out_of_memory", "the text does not fit into the memory of the device")
        # The message of the exception may hold the text.
        return Fault("encode_failed", f"the model raised {type(error).__name__}")

    def _check_device(self) -> None:
        try:
            self.encoder.forward(self.probe)
        except Exception as error:
            raise DeviceLost(f"the device fails on every text: {type(error).__name__}") from error
