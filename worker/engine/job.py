"""A job inside the engine: its texts, their tokens that wait, and their vectors."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from worker.contract import estimates
from worker.contract.errors import JobFailed
from worker.contract.lanes import Lane
from worker.contract.models import ModelInfo, most_tokens
from worker.contract.outcomes import Matrix, Outcome, TextError
from worker.encoder.tokens import TokenBlock
from worker.engine.callbacks import JobCallbacks
from worker.engine.chunks import ChunkedTexts
from worker.engine.vectors import cut_dimensions

if TYPE_CHECKING:
    from worker.cache.entries import Entry
    from worker.contract.jobs import JobOptions

#: Completes the Future that is the job's owner.
_FUTURES = JobCallbacks()


class Piece(NamedTuple):
    """Consecutive texts of one job, or consecutive chunks of its long texts.

    Rows `start` to `stop` of a block. `first` is the number of the first text, or, if it is not
    less than the number of texts, of the first chunk, see `ChunkedTexts`. `ends` are the block's
    offsets as plain integers.
    """

    job: Job
    block: TokenBlock
    ends: list[int]
    start: int
    stop: int
    first: int

    @property
    def texts(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        return self.ends[self.stop] - self.ends[self.start]

    @property
    def token_counts(self) -> list[int]:
        """Tokens of each text."""
        ends = self.ends[self.start : self.stop + 1]
        return [end - start for start, end in pairwise(ends)]


@dataclass(eq=False, slots=True)
class Job:
    """One job inside the engine.

    The engine's lock guards every change. Once every text has ended, the job belongs to the writer
    thread.
    """

    id: str
    texts: list[Any]
    options: JobOptions
    info: ModelInfo
    prompt: str | None = None
    #: The object for which `callbacks` act; a Future of the outcome by default.
    owner: Any = None
    callbacks: JobCallbacks = _FUTURES
    #: Whether it runs alone, because it may have crashed a worker.
    isolated: bool = False
    lane: Lane = Lane.NORMAL
    #: The id of an API key, or "".
    tenant: str = ""
    #: An upper bound of the bytes of its texts.
    size: int = field(init=False)
    #: Texts that were passed to the tokenizer, and texts that have a vector or an error.
    tokenized: int = 0
    done: int = 0
    #: Tokenized texts that are in no batch yet.
    waiting: deque[Piece] = field(default_factory=deque)
    #: Tokens in no batch yet, including an estimate for texts that are not tokenized.
    waiting_tokens: int = 0
    vectors: Matrix | None = None
    #: None if no text is encoded in chunks.
    chunks: ChunkedTexts | None = None
    errors: list[TextError] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    #: The cache keys of its texts; empty without a cache.
    keys: Sequence[bytes | None] = ()
    #: Indices of texts with vectors from the cache.
    hits: Set[int] = frozenset()
    prompt_tokens: int = 0
    #: Tokens of each text, 0 until it has ended; empty if neither caller nor cache needs them.
    token_counts: list[int] = field(init=False)
    cancelled: bool = False
    #: Seconds since the epoch of its first batch.
    started_at: float | None = None

    def __post_init__(self) -> None:
        # Whether a text is ASCII is known without reading it.
        self.size = sum(
            len(text) if text.isascii() else 4 * len(text)
            for text in self.texts
            if isinstance(text, str)
        )
        self.token_counts = [0] * len(self.texts) if self.options.token_counts else []

    @property
    def ended(self) -> bool:
        """Whether every text has a vector or an error."""
        return self.done == len(self.texts)

    def estimate(self, start: int, stop: int) -> int:
        """Estimated tokens of texts `start` to `stop`."""
        return estimates.tokens(self.texts[start:stop], most_tokens(self.options, self.info))

    def set_keys(self, keys: Sequence[bytes | None]) -> None:
        """Set the cache keys. On the cache reader's thread, before any other stage."""
        self.keys = keys
        if keys and not self.token_counts:
            self.token_counts = [0] * len(self.texts)

    def add_hits(self, entries: Mapping[int, Entry]) -> None:
        """End the texts of these indices with their cache entries. After `set_keys`."""
        self.hits = frozenset(entries)
        self.done += len(entries)
        for index, entry in entries.items():
            self._put(index, entry.vector[None])
            self.prompt_tokens += entry.tokens
            self.token_counts[index] = entry.tokens
            if entry.truncated:
                self.truncated.append(index)

    def fail(self, index: int, code: str, message: str) -> None:
        """End one text with an error."""
        self.errors.append(TextError(index, code, message))
        self.done += 1

    def add_chunks(self, index: int, count: int) -> int:
        """Encode one text in chunks; return the row of the first. Called while it is tokenized."""
        if self.chunks is None:
            self.chunks = ChunkedTexts(len(self.texts))
        return self.chunks.add(index, count)

    def take(self, share: int, room: int, *, force: bool) -> Piece | None:
        """Waiting texts of at most `share` tokens, or one text of at most `room` tokens.

        `force`: take one text of any size. Return None if no text fits or waits.
        """
        if not self.waiting:
            return None
        head = self.waiting[0]
        ends, start = head.ends, head.start
        if ends[start + 1] - ends[start] > room and not force:
            return None
        bound = ends[start] + min(share, room)
        stop = max(bisect_right(ends, bound, start + 1, head.stop + 1) - 1, start + 1)
        if stop == head.stop:
            return self.waiting.popleft()
        self.waiting[0] = head._replace(start=stop, first=head.first + stop - start)
        return head._replace(stop=stop)

    def take_batch(self, budget: int) -> list[Piece]:
        """Waiting texts of at most `budget` tokens, or one text with more."""
        pieces: list[Piece] = []
        while (piece := self.take(budget, budget, force=not pieces)) is not None:
            pieces.append(piece)
            budget -= piece.tokens
        return pieces

    def put_vectors(self, piece: Piece, rows: Matrix) -> None:
        """Store the vectors of a piece, float32 (texts, d), with zeros for failed texts.

        Call `fail_row` for these next, and then `count`.
        """
        if self.chunks is not None and piece.first >= self.chunks.first:
            for index, vector in self.chunks.put(piece.first, rows, piece.token_counts):
                self._put(index, vector[None])
        elif piece.texts == len(self.texts):
            self.vectors = rows
        else:
            self._put(piece.first, rows)

    def fail_row(self, row: int, code: str, message: str) -> None:
        """Fail the text of a row of a piece."""
        if self.chunks is not None and row >= self.chunks.first:
            row = self.chunks.text_of(row)
            if not self.chunks.fail(row):
                return
            if self.vectors is not None:
                self.vectors[row] = 0.0
        self.errors.append(TextError(row, code, message))

    def count(self, piece: Piece) -> None:
        """Count a piece after its vectors are stored."""
        self.prompt_tokens += piece.tokens
        chunks = self.chunks if self.chunks is not None and piece.first >= len(self.texts) else None
        self.done += piece.texts if chunks is None else chunks.pop_ended()
        if self.token_counts:
            for row, count in enumerate(piece.token_counts, piece.first):
                self.token_counts[row if chunks is None else chunks.text_of(row)] += count

    def outcome(self) -> Outcome | JobFailed:
        """The outcome of an ended job; a failure with the first code if no text has a vector."""
        errors = sorted(self.errors)
        if len(errors) == len(self.texts):
            first = errors[0]
            return JobFailed(first.code, f"input[{first.index}]: {first.message}")
        # Rows of failed texts are zeros.
        vectors = cast("Matrix", self.vectors)
        return Outcome(
            self.info.name,
            cut_dimensions(vectors, self.options.dimensions, normalize=self.options.normalize),
            self.prompt_tokens,
            errors,
            sorted(self.truncated),
            self.token_counts if self.options.token_counts else [],
        )

    def _put(self, first: int, rows: Matrix) -> None:
        """Store the vectors of texts from `first` on."""
        if self.vectors is None:
            self.vectors = np.zeros((len(self.texts), rows.shape[1]), dtype=np.float32)
        self.vectors[first : first + len(rows)] = rows
