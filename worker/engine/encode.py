"""Encode one batch: bisect failing texts, and handle the errors of memory and device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from worker.contract.backoff import Backoff
from worker.contract.outcomes import Matrix
from worker.encoder.protocol import Cause, Encoder
from worker.encoder.tokens import TokenBlock

logger = logging.getLogger(__name__)


class Fault(NamedTuple):
    """The reason why a text has no vector: a code and a message."""

    code: str
    message: str


OUT_OF_MEMORY = "out_of_memory"
NO_MEMORY = Fault(OUT_OF_MEMORY, "the text does not fit into the memory of the device")
NON_FINITE = Fault("non_finite_vector", "the model gave no finite vector")


#: Full batches in which a budget recovers from zero to its limit. Memory that is short for
#: good then costs about two failed batches of that many.
_RECOVERY = 256
#: Seconds between two tries on a full device.
_BACKOFF = Backoff(0.1, 10.0)


class DeviceLost(RuntimeError):
    """The device is lost, or fails on a text that it encoded before: every later batch fails."""


class Closing(Exception):
    """The engine closes, and the device has no memory for the rest of a batch."""


def _never(_: float) -> bool:
    return False


@dataclass(slots=True)
class BatchEncoder:
    """A model with a token budget. Used by one thread.

    A batch that raises is halved until the culprit is alone. If it ran out of memory, the budget is
    halved as well; full batches then recover the budget, each by the same amount (additive increase
    and multiplicative decrease: Chiu and Jain, 1989). A device without memory even for the probe is
    full: another process holds it, and the batch is retried.
    """

    encoder: Encoder
    #: Tokens of one forward pass, at most; never more than `limit`.
    budget: int
    #: A text that the model is known to take, tried when others fail.
    probe: TokenBlock
    #: Wait for this number of seconds; return False if the engine closes.
    pause: Callable[[float], bool] = field(default=_never)
    #: The budget if memory suffices.
    limit: int = field(init=False)
    #: Batches that were halved because they raised or ran out of memory.
    splits: int = field(default=0)
    #: Those of them that ran out of memory.
    memory_splits: int = field(default=0)

    def __post_init__(self) -> None:
        self.limit = self.budget

    def encode(self, block: TokenBlock, cores: int = 1) -> tuple[Matrix, dict[int, Fault]]:
        """Vectors float32 (n, d) and the faults by row; a faulty row holds zeros.

        `cores`: see `Encoder.forward`. Raises DeviceLost and Closing.
        """
        splits = self.memory_splits
        vectors, faults = self._halving(block, cores)
        if self.memory_splits == splits and 2 * block.tokens >= self.budget:
            self.budget = min(self.budget + max(self.limit // _RECOVERY, 1), self.limit)
        # A sum is finite only if every summand is, and far cheaper than a test of each.
        with np.errstate(all="ignore"):
            any_wrong = not np.isfinite(vectors.sum())
        if any_wrong:
            wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            # The encoder's own array may be read-only.
            vectors = vectors.copy()
            vectors[wrong] = 0.0
            faults |= dict.fromkeys(wrong.tolist(), NON_FINITE)
        return vectors, faults

    def _halving(self, block: TokenBlock, cores: int = 1) -> tuple[Matrix, dict[int, Fault]]:
        budget = self.budget
        vectors = self._attempt(block, cores)
        if not isinstance(vectors, Fault):
            return vectors, {}
        if len(block) == 1:
            return self._alone(block, vectors)
        self.splits += 1
        if vectors.code == OUT_OF_MEMORY:
            self.memory_splits += 1
            self.budget = min(self.budget, max(block.tokens // 2, 1))
        middle = len(block) // 2
        first, faults = self._halving(block.slice(0, middle))
        second, more = self._halving(block.slice(middle, len(block)))
        faults |= {middle + row: fault for row, fault in more.items()}
        if any(fault.code == OUT_OF_MEMORY for fault in faults.values()):
            # The cause is a text that does not fit even alone, not the size of its batch.
            self.budget = budget
        elif self.budget < budget:
            logger.warning(
                "Out of memory at %d tokens; the token budget is now %d", block.tokens, self.budget
            )
        return np.concatenate([first, second]), faults

    def _alone(self, block: TokenBlock, fault: Fault) -> tuple[Matrix, dict[int, Fault]]:
        """The fault of a text, or its vector if the device was only full."""
        pauses = iter(_BACKOFF)
        # The probe distinguishes a faulty text from a full or lost device.
        while isinstance(on_probe := self._attempt(self.probe), Fault):
            if on_probe.code != OUT_OF_MEMORY:
                raise DeviceLost("the device fails on a text that it took before")
            seconds = next(pauses)
            logger.warning(
                "The device is full: no memory even for a short text; retrying in %.1f s", seconds
            )
            if not self.pause(seconds):
                raise Closing
            vectors = self._attempt(block)
            if not isinstance(vectors, Fault):
                return vectors, {}
            fault = vectors
        return np.zeros((1, self.encoder.info.dimensions), dtype=np.float32), {0: fault}

    def _attempt(self, block: TokenBlock, cores: int = 1) -> Matrix | Fault:
        try:
            return self.encoder.forward(block, cores=cores)
        except Exception as error:
            cause = self.encoder.cause(error)
            logger.warning("A batch of %d texts raised %s", len(block), _named(error))
            if cause is Cause.DEVICE:
                raise DeviceLost(str(error).partition("\n")[0]) from error
            if cause is Cause.TEXT:
                return Fault("encode_failed", f"the model raised {_named(error)}")
        # Only here: until the exception is gone, its frames hold the memory of the failed pass.
        self.encoder.release_memory()
        return NO_MEMORY


def _named(error: Exception) -> str:
    """The type of an exception alone: its message may hold a text."""
    return type(error).__name__
