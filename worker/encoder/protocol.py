"""The interface between the engine and a loaded model of any backend."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.contract.models import ModelInfo
from worker.encoder.tokens import TokenBlock


class Cause(Enum):
    """The cause of an exception that a forward pass raised."""

    #: One of the texts; smaller batches show which.
    TEXT = "text"
    #: The device's memory; a smaller batch fits.
    MEMORY = "memory"
    #: The device; every later batch in this process fails, too.
    DEVICE = "device"


class Encoder(Protocol):
    """A model on its device.

    One thread at a time tokenizes; `slots` threads, and one more if there is a reserved slot, each
    call `enter` once and then `forward`. All threads may call `cause` and `release_memory`.
    """

    @property
    def info(self) -> ModelInfo:
        """Properties of the model; never changes."""

    @property
    def padding(self) -> int:
        """Positions of batches so far that held padding; 0 if batches are packed. Any thread."""

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        """Tokens of `texts`, each with `prompt` before it, cut at the model's limit.

        `prompt` as in `SentenceTransformer.encode`: None takes the model's default prompt if it
        has one, `""` takes none. Raises an ordinary exception (`TypeError`, `ValueError`, …) if
        one of the texts cannot be tokenised; the caller finds out which by asking for fewer.
        """

    @property
    def slots(self) -> int:
        """Batches that the device runs at a time; never changes."""

    @property
    def reserved(self) -> bool:
        """Whether one more batch, of interactive texts, may run beside them; never changes."""

    def enter(self, *, yielding: bool) -> None:
        """Prepare the calling thread for `forward`. `yielding`: others get the cores first."""

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        """Vectors of a batch, float32 (n, dimensions), C-contiguous, in the order of the batch.

        The model's own output: every module has run, without any other change. Rows can hold
        NaN or infinities if the model made them. `cores`: of a CPU, for a batch that gains from
        them.
        """

    def cause(self, error: BaseException) -> Cause:
        """Return the cause of an exception that `forward` raised."""

    def release_memory(self) -> None:
        """Give cached device memory back, after a batch ran out of it."""

    def warm_up(self) -> None:
        """Run small and full batches, so that the first job pays for no set-up."""

    def close(self) -> None:
        """Let go of the model. Nothing may be called afterwards."""
