"""What the engine asks of a loaded model, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from worker.contract.models import ModelInfo
from worker.tokens import TokenBlock


class Cause(Enum):
    """The cause of an exception that a forward pass raised."""

    #: One of the texts; smaller batches show which.
    TEXT = "text"
    #: The device's memory; a smaller batch fits.
    MEMORY = "memory"
    #: The device; every later batch in this process fails, too.
    DEVICE = "device"


class Begun(Protocol):
    """A forward pass that is under way. The thread that began it calls both methods."""

    def wait_for_core(self) -> None:
        """Block until a part of the device has nothing left to do, so that another may begin."""

    def vectors(self) -> NDArray[np.float32]:
        """Block until it is done; see `Encoder.forward`, whose errors it raises."""


class Encoder(Protocol):
    """A model on its device.

    Two threads use it, each owning its half: any one thread at a time tokenises, and one thread,
    the device thread, calls everything else. The halves share nothing that changes. A third may
    call what `express` gives, `cause` and `release_memory`.
    """

    @property
    def info(self) -> ModelInfo:
        """What the model is; never changes."""

    @property
    def padding(self) -> int:
        """Positions of batches so far that held padding; 0 where batches are packed. Any thread."""

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        """Tokens of `texts`, each with `prompt` before it, cut at the model's limit.

        `prompt` as in `SentenceTransformer.encode`: None takes the model's default prompt where it
        has one, `""` takes none. Raises an ordinary exception (`TypeError`, `ValueError`, …) where
        one of the texts cannot be tokenised; the caller finds out which by asking for fewer.
        """

    def forward(self, batch: TokenBlock, *, patient: bool = False) -> NDArray[np.float32]:
        """Vectors of a batch, float32 (n, dimensions), C-contiguous, in the order of the batch.

        The model's own output: every module has run, nothing else was done to it. Rows can hold
        NaN or infinities if the model made them. `patient`: whoever else wants the cores may have
        them first.
        """

    def begin(self, batch: TokenBlock, *, patient: bool = False) -> Begun | None:
        """Begin `forward` of a batch that needs only a part of the device at its end.

        The next one may begin while that is so; they end in turn. None where `forward` has to do
        it all.
        """

    @property
    def express(self) -> Callable[[TokenBlock], NDArray[np.float32]] | None:
        """`forward` for a small batch while the device thread runs a large one; never changes.

        Meant for one thread more. None where the device would begin it only after the other.
        """

    def cause(self, error: BaseException) -> Cause:
        """Return the cause of an exception that `begin` or `forward` raised."""

    def release_memory(self) -> None:
        """Give cached device memory back, after a batch ran out of it."""

    def warm_up(self) -> None:
        """Run small and full batches, so that the first job pays for no set-up."""

    def close(self) -> None:
        """Let go of the model. Nothing may be called afterwards."""
