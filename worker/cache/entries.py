"""Key and format of a cache entry. Pure.

The key is the SHA-256 of everything that affects the vector: the model's revision, the prompt, the
options `long` and `normalize`, and the text. `dimensions` are cut afterwards, for hits as for
encoded texts. `truncate` is checked when an entry is read.
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

#: Version of keys and values; a new version ignores earlier entries.
_FORMAT = b"embedq 1"
#: Header of a vector: tokens, and whether the text was truncated.
_HEAD = struct.Struct("<I?3x")


class Entry(NamedTuple):
    """Cached vector of a text."""

    #: float32 (d,), as in the job's result, but not cut to its `dimensions`.
    vector: Matrix
    #: Tokens that the model read.
    tokens: int
    #: Whether the text was truncated.
    truncated: bool

    def packed(self) -> bytes:
        """Return the stored form: the header and the numbers, little-endian."""
        return _HEAD.pack(self.tokens, self.truncated) + self.vector.astype("<f4").tobytes()

    @classmethod
    def read(cls, stored: bytes | None, dimensions: int) -> Entry | None:
        """Parse a stored entry; None if it is missing or has another size."""
        if stored is None or len(stored) != _HEAD.size + 4 * dimensions:
            return None
        tokens, truncated = _HEAD.unpack_from(stored)
        return cls(np.frombuffer(stored, "<f4", offset=_HEAD.size), tokens, truncated)


class Keys:
    """The keys of texts, for models with a known revision."""

    def __init__(self, revisions: Mapping[str, bytes]) -> None:
        """`revisions` by the model's served name, see `revision`."""
        self._revisions = dict(revisions)

    def of(
        self, model: str, prompt: str | None, options: JobOptions, texts: Sequence[Any]
    ) -> list[bytes | None]:
        """A key for each text, None for other inputs; empty if the model's revision is unknown."""
        revision = self._revisions.get(model)
        if revision is None:
            return []
        start = hashlib.sha256(_FORMAT)
        # Each part is prefixed with its length, so that different parts cannot give one key.
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
    # A lone surrogate has no UTF-8 form; the tokenizer decides whether it is valid.
    return text.encode("utf-8", "surrogatepass")
