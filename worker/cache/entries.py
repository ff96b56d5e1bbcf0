"""What a text is found by, and what is kept of it. Pure.

A text is found by the SHA-256 of all that its vector depends on: the model's revision, the prompt,
what is done to long texts and whether the vector is scaled, and the text. `dimensions` are cut
afterwards, from the cache as from the model, and `truncate` is asked of what is found.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from worker.contract.outcomes import Matrix

if TYPE_CHECKING:
    from worker.contract.jobs import JobOptions

#: The form of keys and values; another one finds nothing of earlier ones.
_FORMAT = b"embedq 1"
#: Before the numbers of a vector: tokens, and whether the text was cut.
_HEAD = struct.Struct("<I?3x")


class Entry(NamedTuple):
    """What is kept of a text."""

    #: float32 (d,), as a job gets it but for its `dimensions`.
    vector: Matrix
    #: Tokens that the model read of it.
    tokens: int
    #: Whether some of the text was left out.
    truncated: bool

    def packed(self) -> bytes:
        """As it is stored: the head and the numbers, little-endian."""
        return _HEAD.pack(self.tokens, self.truncated) + self.vector.astype("<f4").tobytes()

    @classmethod
    def read(cls, stored: bytes | None, dimensions: int) -> Entry | None:
        """What was stored; None where it is nothing of this size."""
        if stored is None or len(stored) != _HEAD.size + 4 * dimensions:
            return None
        tokens, truncated = _HEAD.unpack_from(stored)
        return cls(np.frombuffer(stored, "<f4", offset=_HEAD.size), tokens, truncated)


class Keys:
    """The keys of texts, for models whose revision is known."""

    def __init__(self, revisions: Mapping[str, bytes]) -> None:
        """`revisions` by the model's served name, see `revision`."""
        self._revisions = dict(revisions)

    def of(
        self, model: str, prompt: str | None, options: JobOptions, texts: Sequence[Any]
    ) -> list[bytes | None]:
        """A key for each text, None for what is none; empty where the model is not known."""
        revision = self._revisions.get(model)
        if revision is None:
            return []
        start = hashlib.sha256(_FORMAT)
        # Each part with its length, so that none can pass for the beginning of the next.
        said = "default" if prompt is None else f"={prompt}"
        for part in (revision, said, options.long, str(options.normalize)):
            data = part if isinstance(part, bytes) else _bytes(part)
            start.update(len(data).to_bytes(8, "little") + data)
        return [_digest(start, text) if isinstance(text, str) else None for text in texts]


def _digest(start: Any, text: str) -> bytes:
    digest = start.copy()
    digest.update(_bytes(text))
    key: bytes = digest.digest()
    return key


def _bytes(text: str) -> bytes:
    # A lone surrogate has no UTF-8 of its own; the tokenizer will say what it thinks of it.
    return text.encode("utf-8", "surrogatepass")
