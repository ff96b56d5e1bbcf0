"""Long texts in chunks: split a text beyond the model's limit, and average the chunks' vectors.

A chunk ends between words. It is tokenized as a separate text after the prompt, so its vector is
the one that the library gives for that part of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.contract.models import MOST_WINDOWS
from worker.contract.outcomes import Matrix
from worker.encoder.protocol import Encoder
from worker.encoder.tokens import TokenBlock

#: Characters of the parts that chunks consist of, per token of the limit, and their minimum. Most
#: words are shorter. A chunk lacks at most one part.
_CHARACTERS_PER_PART = 0.125
_SHORTEST_PART = 32
#: Characters that are read per token of all chunks; words have fewer.
_CHARACTERS_PER_TOKEN = 8
#: The largest difference from 1 of the squared length of a normalized vector, in 16 bits too.
_UNIT_TOLERANCE = 1e-2


class Split(NamedTuple):
    """The chunks of a text, in order."""

    texts: list[str]
    #: Their tokens, one text per chunk, with prompts and special tokens.
    block: TokenBlock
    #: Whether some of the text is in no chunk.
    cut: bool


def split(encoder: Encoder, text: str, prompt: str | None) -> Split | None:
    """The chunks of a text; None if the prompt fills the limit, or if the text is blank.

    A chunk is as long as the model's limit allows, except for a few words. There are at most
    `MOST_WINDOWS`; the rest of the text is cut. The time is proportional to the text. Raises the
    tokenizer's exceptions.
    """
    limit = encoder.info.max_tokens
    shortest = encoder.tokenize(["a"], prompt)
    room = limit - shortest.tokens + 1
    reach = MOST_WINDOWS * limit * _CHARACTERS_PER_TOKEN
    parts = list(_parts(text[:reach], max(int(limit * _CHARACTERS_PER_PART), _SHORTEST_PART)))
    if shortest.truncated[0] or not parts:
        return None
    special = encoder.tokenize(["a"], "").tokens - 1
    costs = encoder.tokenize(parts, "").lengths - special
    packed = _packed(parts, costs.tolist(), room)
    chunks = list(_tokenized(encoder, packed[:MOST_WINDOWS], prompt))
    cut = len(text) > reach or max(len(packed), len(chunks)) > MOST_WINDOWS
    block = TokenBlock.join([block for _, block in chunks[:MOST_WINDOWS]])
    texts = [text for text, _ in chunks[:MOST_WINDOWS]]
    return Split(texts, block, cut or bool(block.truncated.any()))


@dataclass(slots=True)
class ChunkedTexts:
    """The long texts of a job. Rows past the job's own texts are their chunks.

    The thread that tokenizes adds chunks, before any batch holds them; the engine's lock guards
    all other changes.
    """

    #: Number of texts of the job, and so the row of the first chunk.
    first: int
    _text_of: list[int] = field(default_factory=list)
    _texts: dict[int, _LongText] = field(default_factory=dict)
    #: The number of texts that ended since the last call of `pop_ended`.
    _ended: int = 0

    def add(self, text: int, count: int) -> int:
        """Add a text of `count` chunks; return the row of the first."""
        row = self.first + len(self._text_of)
        self._texts[text] = _LongText(count)
        self._text_of += [text] * count
        return row

    def text_of(self, row: int) -> int:
        """The text of a chunk."""
        return self._text_of[row - self.first]

    def put(self, row: int, vectors: Matrix, tokens: Sequence[int]) -> Iterator[tuple[int, Matrix]]:
        """Add the vectors of chunks from `row` on, float32 (n, d), weighted by their `tokens`.

        Yields the texts that are complete and did not fail, with their vectors, float32 (d,).
        """
        for place, (vector, weight) in enumerate(zip(vectors, tokens, strict=True)):
            index = self.text_of(row + place)
            text = self._texts[index]
            text.add(vector, weight)
            if not text.left:
                self._ended += 1
                if not text.failed:
                    yield index, text.mean()

    def fail(self, text: int) -> bool:
        """Fail a text because a chunk has no vector; return False if it had failed before."""
        known = self._texts[text].failed
        self._texts[text].failed = True
        return not known

    def pop_ended(self) -> int:
        """Return the number of texts that ended since the last call."""
        ended, self._ended = self._ended, 0
        return ended


@dataclass(slots=True)
class _LongText:
    """One text: its chunks without a vector yet, and the sum of the others weighted by tokens."""

    left: int
    tokens: int = 0
    sum: NDArray[np.float64] | float = 0.0
    #: Whether every chunk's vector has length 1.
    unit: bool = True
    failed: bool = False

    def add(self, vector: Matrix, weight: int) -> None:
        """Add the vector of a chunk with `weight` tokens."""
        wide = vector.astype(np.float64)
        self.sum = self.sum + wide * weight
        self.tokens += weight
        self.unit = self.unit and abs(float(wide @ wide) - 1.0) < _UNIT_TOLERANCE
        self.left -= 1

    def mean(self) -> Matrix:
        """The mean, float32 (d,), of length 1 if all chunks' vectors are."""
        mean = np.asarray(self.sum) / self.tokens
        if self.unit:
            mean /= max(float(np.linalg.norm(mean)), 1e-12)
        return mean.astype(np.float32)


def _tokenized(
    encoder: Encoder, chunks: Sequence[list[str]], prompt: str | None
) -> Iterator[tuple[str, TokenBlock]]:
    """Text and tokens of each chunk, given as its parts; a chunk that is too long is halved."""
    texts = ["".join(parts).strip() for parts in chunks]
    block = encoder.tokenize(texts, prompt)
    for row, (parts, text) in enumerate(zip(chunks, texts, strict=True)):
        # Parts can have more tokens together than apart, or a single part one too many.
        if block.truncated[row] and len(text) > 1:
            yield from _tokenized(encoder, _halves(parts), prompt)
        else:
            yield text, block.slice(row, row + 1)


def _halves(parts: list[str]) -> list[list[str]]:
    """Two chunks of the parts of one, or of the characters of its only part, but no blank one."""
    pieces = parts if len(parts) > 1 else list(parts[0])
    middle = len(pieces) // 2
    return [half for half in (pieces[:middle], pieces[middle:]) if "".join(half).strip()]


def _parts(text: str, characters: int) -> Iterator[str]:
    """The text in order, blanks before words: words together up to `characters`.

    A longer word is cut there. Each character is read a few times at most.
    """
    blanks = re.compile(r"\s*")
    words = re.compile(rf"\S[\s\S]{{0,{characters - 1}}}(?=\s|\Z)|\S{{1,{characters}}}")
    start = 0
    # Blanks apart: a search for blanks and a word together would restart at each blank.
    while match := words.match(text, blanks.match(text, start).end()):  # type: ignore[union-attr]
        yield text[start : match.end()]
        start = match.end()


def _packed(parts: Sequence[str], costs: Sequence[int], room: int) -> list[list[str]]:
    """Consecutive parts, as many together as fit into `room` tokens."""
    chunks: list[list[str]] = []
    left = 0
    for part, cost in zip(parts, costs, strict=True):
        if not chunks or cost > left:
            chunks.append([])
            left = room
        chunks[-1].append(part)
        left -= cost
    return chunks
