"""Metrics of the engine's batches and of its calls of the tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from worker.engine.job import Job, Piece
from worker.metrics.histogram import Histogram, tallied

if TYPE_CHECKING:
    from worker.engine.tokenize import Slice


class Watch(Protocol):
    """Who wants to know of each step and the jobs it served. Must neither block nor raise."""

    def tokenised(self, jobs: Iterable[Job], seconds: float, texts: int) -> None:
        """One call of the tokenizer has ended. Tokeniser thread."""

    def encoded(self, jobs: Iterable[Job], seconds: float, texts: int, tokens: int) -> None:
        """One batch has ended. Whoever holds the engine's lock."""


class Counts:
    """Each method belongs to the thread it names and takes no lock; any thread may read.

    A batch costs about a microsecond here, whatever it holds.
    """

    def __init__(self) -> None:
        #: Set before the engine starts.
        self.watch: Watch | None = None
        self._tokenise_seconds = Histogram("tokenise_seconds")
        self._forward_seconds = Histogram("forward_seconds")
        self._batch_texts = Histogram("batch_texts")
        self._batch_tokens = Histogram("batch_tokens")
        self._batch_fill = Histogram("batch_fill")
        self._cache_seconds = Histogram("cache_seconds")
        #: Texts by what the look-up came to, and by what came of keeping them.
        self._looked_up: Counter[tuple[str, ...]] = Counter()
        self._kept: Counter[tuple[str, ...]] = Counter()
        self._truncated = 0
        #: Texts by the code of their error: those refused by the tokeniser, those by the device.
        self._refused: Counter[tuple[str, ...]] = Counter()
        self._faulty: Counter[tuple[str, ...]] = Counter()

    def tokenised(
        self, slices: Sequence[Slice], seconds: float, refused: Iterable[str], truncated: int
    ) -> None:
        """One call of the tokenizer; `refused` are codes. Tokeniser thread."""
        self._tokenise_seconds.observe(seconds)
        self._truncated += truncated
        for code in refused:
            self._refused[code,] += 1
        if self.watch is not None:
            texts = sum(part.stop - part.start for part in slices)
            self.watch.tokenised([part.job for part in slices], seconds, texts)

    def encoded(
        self,
        pieces: Sequence[Piece],
        seconds: float,
        *,
        texts: int,
        tokens: int,
        budget: int,
        faults: Iterable[str],
    ) -> None:
        """One batch of at most `budget` tokens; `faults` are codes. Whoever holds the lock."""
        self._forward_seconds.observe(seconds)
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)
        self._batch_fill.observe(tokens / budget)
        for code in faults:
            self._faulty[code,] += 1
        if self.watch is not None:
            # A job can have pieces of several blocks in a batch.
            jobs = dict.fromkeys(piece.job for piece in pieces)
            self.watch.encoded(jobs, seconds, texts, tokens)

    def looked_up(self, seconds: float, *, hits: int, misses: int) -> None:
        """One look-up in the cache, of so many texts found and not found. Lookup thread."""
        self._cache_seconds.observe(seconds)
        self._looked_up["hit",] += hits
        self._looked_up["miss",] += misses

    def unasked(self, texts: int) -> None:
        """Texts that were not looked up, Redis being slow or away. Lookup thread."""
        self._looked_up["unasked",] += texts

    def kept(self, texts: int, *, dropped: int) -> None:
        """Texts whose vectors were kept, or were not. Whoever holds the engine's lock."""
        self._kept["kept",] += texts
        self._kept["dropped",] += dropped

    def figures(self) -> dict[str, Any]:
        """All of it as it travels, see `metrics.registry`."""
        return {
            "tokenise_seconds": self._tokenise_seconds.figure(),
            "forward_seconds": self._forward_seconds.figure(),
            "batch_texts": self._batch_texts.figure(),
            "batch_tokens": self._batch_tokens.figure(),
            "batch_fill": self._batch_fill.figure(),
            "cache_seconds": self._cache_seconds.figure(),
            "cache_texts": tallied(self._looked_up) + tallied(self._kept),
            "texts_truncated": self._truncated,
            "texts_failed": tallied(self._refused) + tallied(self._faulty),
        }
