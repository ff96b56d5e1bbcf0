"""The properties of a loaded model; data only, shared by worker and API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.contract.jobs import JobOptions

#: `ModelInfo.max_tokens` of a model without a limit.
UNLIMITED = 2**31 - 1
#: Windows of one text that is read in several, see `JobOptions.long`.
MOST_WINDOWS = 128


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve: the name that callers use, and its source.

    `source` is a path or a Hub id; None stands for the packaged all-MiniLM-L6-v2.
    """

    name: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model, as far as callers and schedulers need to know it."""

    name: str
    #: Length of a vector as the model gives it.
    dimensions: int
    #: Longest input in tokens, special tokens included; longer ones are cut.
    max_tokens: int
    device: str
    backend: str
    dtype: str
    #: True if a batch is one packed sequence without padding.
    packed: bool
    #: Tokens of one forward pass that fill the device, including padding unless packed.
    batch_tokens: int
    #: Named prompts of the model, as in sentence-transformers.
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    #: Smaller sizes the model was trained for (Matryoshka), without the native one.
    matryoshka: tuple[int, ...] = ()
    #: How forward passes run: `kernel` (packed, attention in one kernel), `layers` (packed, layers
    #: of our own), `groups` (packed, attention in groups of texts), `padded` or `table`.
    path: str = ""
    #: Mean cosine to float32 vectors, measured on this machine at load; None in float32.
    cosine: float | None = None


def prompt_text(options: JobOptions, info: ModelInfo) -> str | None:
    """The prompt to put before the texts, chosen as `SentenceTransformer.encode` does."""
    if options.prompt is not None:
        return options.prompt
    name = options.prompt_name or info.default_prompt_name
    return info.prompts.get(name) if name is not None else None


def most_tokens(options: JobOptions, info: ModelInfo) -> int:
    """Tokens that the model reads of one text at most."""
    return info.max_tokens * (MOST_WINDOWS if options.long == "mean" else 1)
