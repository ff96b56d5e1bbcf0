"""A job under way: its texts, which of them are tokenised, and the vectors that have come back."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from worker.contract.errors import JobFailed
from worker.contract.lanes import Lane
from worker.contract.models import ModelInfo
from worker.contract.outcomes import Matrix, Outcome, TextError
from worker.encoder.tokens import TokenBlock
from worker.engine.pooled import Pooled

if TYPE_CHECKING:
    from worker.cache.entries import Entry
    from worker.contract.jobs import JobOptions


class Piece(NamedTuple):
    """Consecutive texts of one job, or windows of its long ones.

    Rows `start` to `stop` of a block, the first being text `first` of the job, or past its texts a
    window, see `Pooled`; `ends` are the block's offsets as plain numbers.
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


class Job:
    """One job inside the engine.

    The engine's lock guards what changes. Once every text has ended, all of it is the writer's.
    """

    __slots__ = (
        "alone",
        "bytes",
        "cancelled",
        "chunks",
        "done",
        "errors",
        "id",
        "info",
        "keys",
        "lane",
        "options",
        "owner",
        "pooled",
        "prompt",
        "prompt_tokens",
        "recalled",
        "started_at",
        "tenant",
        "texts",
        "token_counts",
        "tokenised",
        "truncated",
        "vectors",
        "waiting_tokens",
    )

    def __init__(
        self,
        job_id: str,
        texts: list[Any],
        options: JobOptions,
        info: ModelInfo,
        *,
        prompt: str | None = None,
        owner: Any = None,
        alone: bool = False,
        lane: Lane = Lane.NORMAL,
        tenant: str = "",
    ) -> None:
        self.id = job_id
        self.texts = texts
        #: Bytes that they take at most; whether one is ASCII is known without a look at it.
        self.bytes = sum(
            len(text) if text.isascii() else 4 * len(text)
            for text in texts
            if isinstance(text, str)
        )
        self.options = options
        self.info = info
        self.prompt = prompt
        #: The sink's own view of the job; the engine does not read it.
        self.owner = owner
        #: Shares no batch with other jobs: it may be what killed a worker.
        self.alone = alone
        self.lane = lane
        #: Jobs of one tenant share its part of the batches; "" without API keys.
        self.tenant = tenant
        #: Texts handed to the tokenizer, and texts that have a vector or an error.
        self.tokenised = 0
        self.done = 0
        self.chunks: deque[Piece] = deque()
        self.vectors: Matrix | None = None
        #: None where no text is read in windows.
        self.pooled: Pooled | None = None
        self.errors: list[TextError] = []
        self.truncated: list[int] = []
        #: What its texts are remembered by, see `recall`; empty where they are not.
        self.keys: Sequence[bytes | None] = ()
        #: Texts whose vectors were remembered: no batch holds these.
        self.recalled: Set[int] = frozenset()
        self.prompt_tokens = 0
        #: Tokens of each text, 0 while it has not ended; empty where nobody asks.
        self.token_counts = [0] * len(texts) if options.token_counts else []
        #: Tokens in no batch yet, those not tokenised estimated.
        self.waiting_tokens = 0
        self.cancelled = False
        #: Seconds since the epoch of its first batch.
        self.started_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.done == len(self.texts)

    @property
    def waits_whole(self) -> bool:
        """Whether all that is left of it is tokenised and in no batch, and nothing in windows."""
        waiting = sum(piece.texts for piece in self.chunks)
        return self.pooled is None and waiting + self.done == len(self.texts)

    def remember_by(self, keys: Sequence[bytes | None]) -> None:
        """Set the keys of its texts. On the thread that looks them up, before all else."""
        self.keys = keys
        if keys and not self.token_counts:
            self.token_counts = [0] * len(self.texts)

    def recall(self, entries: Mapping[int, Entry]) -> None:
        """End the texts of these indices with what is remembered. As `remember_by`."""
        self.recalled = frozenset(entries)
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

    def split(self, index: int, windows: int) -> int:
        """One text is read in so many windows; the row of the first. On the tokeniser thread."""
        if self.pooled is None:
            self.pooled = Pooled(len(self.texts))
        return self.pooled.add(index, windows)

    def take(self, share: int, room: int, *, force: bool) -> Piece | None:
        """Waiting texts of at most `share` tokens, but one where that fits into `room` at all.

        `force` takes one text whatever it holds. None where nothing fits or waits.
        """
        if not self.chunks:
            return None
        head = self.chunks[0]
        ends, start = head.ends, head.start
        if ends[start + 1] - ends[start] > room and not force:
            return None
        bound = ends[start] + min(share, room)
        stop = max(bisect_right(ends, bound, start + 1, head.stop + 1) - 1, start + 1)
        if stop == head.stop:
            return self.chunks.popleft()
        self.chunks[0] = head._replace(start=stop, first=head.first + stop - start)
        return head._replace(stop=stop)

    def take_batch(self, budget: int) -> list[Piece]:
        """Waiting texts of at most `budget` tokens, or one of more."""
        pieces: list[Piece] = []
        while (piece := self.take(budget, budget, force=not pieces)) is not None:
            pieces.append(piece)
            budget -= piece.tokens
        return pieces

    def keep(self, piece: Piece, rows: Matrix) -> None:
        """Keep the vectors of a piece, float32 (texts, d); those of failed texts are zeros.

        Before `arrive`.
        """
        if self.pooled is not None and piece.first >= self.pooled.first:
            for index, vector in self.pooled.keep(piece.first, rows, piece.token_counts):
                self._put(index, vector[None])
            return
        if piece.texts == len(self.texts):
            self.vectors = rows
            return
        self._put(piece.first, rows)

    def fault(self, row: int, code: str, message: str) -> None:
        """A row of a piece has no vector. Between `keep` and `arrive`."""
        if self.pooled is not None and row >= self.pooled.first:
            row = self.pooled.text_of(row)
            if not self.pooled.fail(row):
                return
            if self.vectors is not None:
                self.vectors[row] = 0.0
        self.errors.append(TextError(row, code, message))

    def arrive(self, piece: Piece) -> None:
        """Count a piece whose vectors are kept."""
        self.prompt_tokens += piece.tokens
        pooled = self.pooled if self.pooled is not None and piece.first >= len(self.texts) else None
        self.done += piece.texts if pooled is None else pooled.ended()
        if self.token_counts:
            for row, count in enumerate(piece.token_counts, piece.first):
                self.token_counts[row if pooled is None else pooled.text_of(row)] += count

    def outcome(self) -> Outcome | JobFailed:
        """What became of the job: where no text has a vector, a failure with the first code."""
        errors = sorted(self.errors)
        if len(errors) == len(self.texts):
            first = errors[0]
            return JobFailed(first.code, f"input[{first.index}]: {first.message}")
        # Rows of failed texts are zeros: nothing was written there, or the forward pass wrote them.
        vectors = cast("Matrix", self.vectors)
        return Outcome(
            self.info.name,
            vectors,
            self.prompt_tokens,
            errors,
            sorted(self.truncated),
            self.token_counts if self.options.token_counts else [],
        )

    def _put(self, first: int, rows: Matrix) -> None:
        """Keep the vectors of texts from `first` on."""
        if self.vectors is None:
            self.vectors = np.zeros((len(self.texts), rows.shape[1]), dtype=np.float32)
        self.vectors[first : first + len(rows)] = rows
