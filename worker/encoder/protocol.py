"""The interface between the engine and a loaded model of any backend.

Importing it loads no numpy, since settings and the command line import the registry of backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from worker.contract.models import ModelInfo
    from worker.encoder.tokens import TokenBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to run a model; every backend takes these."""

    #: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
    device: str = "auto"
    #: A name of `worker.contract.backends`, or `auto`: the first one with the number format.
    backend: str = "auto"
    #: A number format of the backend, or `auto`.
    dtype: str = "auto"
    #: Tokens of a full forward pass; None: suitable for the device.
    batch_tokens: int | None = None
    #: Cores that forward passes use, with torch in the whole process; None: all.
    threads: int | None = None
    #: Mean cosine to float32 that a smaller number format must reach.
    min_cosine: float = 0.99
    #: The part of a GPU's memory to use, above 0 and up to 1.
    memory_share: float = 1.0
    #: Folder of converted models; None: the user's cache.
    cache: Path | None = None
    #: Pad batches even if the model can be packed, to compare the two.
    padded: bool = False


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

    One thread at a time tokenizes. `slots` threads, and one more if there is a reserved slot, each
    call `enter` once and then `forward`. Any thread may call `cause` and `release_memory`.
    """

    @property
    def info(self) -> ModelInfo:
        """Properties of the model; constant."""

    @property
    def padding(self) -> int:
        """Positions of batches so far that held padding; 0 if batches are packed. Any thread."""

    @property
    def slots(self) -> int:
        """Batches that the device runs at a time; constant."""

    @property
    def reserved(self) -> bool:
        """Whether one more batch, of interactive texts, may run at the same time; constant."""

    def tokenize(self, texts: Sequence[str], prompt: str | None = None) -> TokenBlock:
        """Tokens of `texts`, each after `prompt`, cut at the model's limit.

        `prompt` as in `SentenceTransformer.encode`: None takes the model's default prompt, `""` no
        prompt. Raises an ordinary exception (`TypeError`, `ValueError`, …) if one of the texts
        cannot be tokenized; smaller calls show which.
        """

    def enter(self, *, yielding: bool) -> None:
        """Prepare the calling thread for `forward`. `yielding`: others get the cores first."""

    def forward(self, batch: TokenBlock, *, cores: int = 1) -> NDArray[np.float32]:
        """Vectors of a batch, float32 (n, dimensions), C-contiguous, in the order of the batch.

        The model's own output: every module has run, without any other change. Rows can hold
        NaN or infinities if the model made them. `cores`: cores of a CPU, for a batch that gains
        from them.
        """

    def cause(self, error: BaseException) -> Cause:
        """Return the cause of an exception that `forward` raised."""

    def release_memory(self) -> None:
        """Return cached memory to the device, after a batch exhausted it."""

    def warm_up(self) -> None:
        """Run small and full batches, so that the first job pays for no set-up."""

    def close(self) -> None:
        """Release the model. No method may be called afterwards."""
