"""One batch through the model, whatever one of its texts does to it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from worker.contract.outcomes import Matrix
from worker.encoder.protocol import Begun, Encoder
from worker.tokens import TokenBlock

logger = logging.getLogger(__name__)


class Fault(NamedTuple):
    """Why a text has no vector: a code and words for people."""

    code: str
    message: str


OUT_OF_MEMORY = "out_of_memory"
NO_MEMORY = Fault(OUT_OF_MEMORY, "the text does not fit into the memory of the device")
NON_FINITE = Fault("non_finite_vector", "the model gave no finite vector")


class DeviceLost(RuntimeError):
    """The device fails on a text it encoded before: no later batch can succeed either."""


@dataclass(slots=True)
class Forward:
    """The model behind one budget. Used by one thread.

    A batch that raises is halved until the culprit is alone; a batch that runs out of memory is
    halved too, and the budget with it, for good.
    """

    encoder: Encoder
    #: Tokens of one forward pass, at most.
    budget: int
    #: A text that the model is known to take, tried when others fail.
    probe: TokenBlock
    #: Batches that were cut because they raised or ran out of memory.
    splits: int = field(default=0)
    #: Those of them that ran out of memory.
    memory_splits: int = field(default=0)
    #: Whether it runs as the encoder's express.
    express: bool = field(default=False)
    #: Whether what runs next leaves the cores to others, see `Encoder.forward`.
    patient: bool = field(default=False)

    def begin(self, block: TokenBlock) -> Begun | None:
        """Begin a batch that another one may begin beside, see `Encoder.begin`."""
        return None if self.express else self.encoder.begin(block, patient=self.patient)

    def run(self, block: TokenBlock, begun: Begun | None = None) -> tuple[Matrix, dict[int, Fault]]:
        """Vectors float32 (n, d) and the faults by row; a faulty row holds zeros.

        `begun`: what `begin` gave. Raises DeviceLost.
        """
        vectors, faults = self._halving(block, begun)
        # A sum is finite only if every summand is, and far cheaper than looking at each.
        with np.errstate(all="ignore"):
            suspect = not np.isfinite(vectors.sum())
        if suspect:
            wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            # The encoder's own array may be read-only.
            vectors = vectors.copy()
            vectors[wrong] = 0.0
            faults |= dict.fromkeys(wrong.tolist(), NON_FINITE)
        return vectors, faults

    def _halving(
        self, block: TokenBlock, begun: Begun | None = None
    ) -> tuple[Matrix, dict[int, Fault]]:
        budget = self.budget
        vectors = self._attempt(block, begun)
        if not isinstance(vectors, Fault):
            return vectors, {}
        if len(block) == 1:
            # A lost device fails on every text; then this one may be innocent.
            if isinstance(self._attempt(self.probe), Fault):
                raise DeviceLost("the device fails on a text that it took before")
            empty = np.zeros((1, self.encoder.info.dimensions), dtype=np.float32)
            return empty, {0: vectors}
        self.splits += 1
        if vectors.code == OUT_OF_MEMORY:
            self.memory_splits += 1
            self.budget = min(self.budget, max(block.tokens // 2, 1))
        middle = len(block) // 2
        first, faults = self._halving(block.slice(0, middle))
        second, more = self._halving(block.slice(middle, len(block)))
        faults |= {middle + row: fault for row, fault in more.items()}
        if any(fault.code == OUT_OF_MEMORY for fault in faults.values()):
            # A text that does not fit even alone is to blame, not the size of its batch.
            self.budget = budget
        elif self.budget < budget:
            logger.warning(
                "Out of memory at %d tokens; the token budget is now %d", block.tokens, self.budget
            )
        return np.concatenate([first, second]), faults

    def _attempt(self, block: TokenBlock, begun: Begun | None = None) -> Matrix | Fault:
        try:
            if begun is not None:
                return begun.vectors()
            if self.express and self.encoder.express is not None:
                return self.encoder.express(block)
            return self.encoder.forward(block, patient=self.patient)
        except Exception as error:  # noqa: BLE001 - the texts answer for it, one by one
            logger.warning("A batch of %d texts raised %s", len(block), type(error).__name__)
            if not self.encoder.is_out_of_memory(error):
                # The message of the exception may hold the text.
                return Fault("encode_failed", f"the model raised {type(error).__name__}")
        # Only here: until the exception is gone, its frames hold what the failed pass allocated.
        self.encoder.release_memory()
        return NO_MEMORY
