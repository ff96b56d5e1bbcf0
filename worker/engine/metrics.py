"""Metrics of the engine: its batches, tokenizer calls and cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from worker.engine.job import Job, Piece
from worker.metrics.recorder import Recorder

if TYPE_CHECKING:
    from worker.engine.tokenize import Slice


class Watch(Protocol):
    """An observer of each step and its jobs. Must neither block nor raise."""

    def tokenised(self, jobs: Iterable[Job], seconds: float, texts: int) -> None:
        """One call of the tokenizer has ended. Tokenizer thread."""

    def encoded(self, jobs: Iterable[Job], seconds: float, texts: int, tokens: int) -> None:
        """One batch has ended. The caller holds the engine's lock."""


class Counts(Recorder):
    """Counts batches, calls of the tokenizer and look-ups. Any thread; microseconds a batch."""

    def __init__(self) -> None:
        super().__init__()
        #: Set before the engine starts.
        self.watch: Watch | None = None

    def tokenised(
        self, slices: Sequence[Slice], seconds: float, refused: Iterable[str], truncated: int
    ) -> None:
        """One call of the tokenizer; `refused` are codes."""
        self.observe("tokenise_seconds", seconds)
        self.count("texts_truncated", truncated)
        self._failed(refused)
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
        """One batch of at most `budget` tokens; `faults` are codes."""
        self.observe("forward_seconds", seconds)
        self.observe("batch_texts", texts)
        self.observe("batch_tokens", tokens)
        self.observe("batch_fill", tokens / budget)
        self._failed(faults)
        if self.watch is not None:
            # A job can have pieces of several blocks in a batch.
            jobs = dict.fromkeys(piece.job for piece in pieces)
            self.watch.encoded(jobs, seconds, texts, tokens)

    def looked_up(self, seconds: float, *, hits: int, misses: int) -> None:
        """One look-up in the cache, with its numbers of hits and misses."""
        self.observe("cache_seconds", seconds)
        self.count("cache_texts", hits, "hit")
        self.count("cache_texts", misses, "miss")

    def unasked(self, texts: int) -> None:
        """Count texts that were not looked up because Redis was slow or away."""
        self.count("cache_texts", texts, "unasked")

    def kept(self, texts: int, *, dropped: int) -> None:
        """Count texts with cached and with dropped vectors."""
        self.count("cache_texts", texts, "kept")
        self.count("cache_texts", dropped, "dropped")

    def _failed(self, codes: Iterable[str]) -> None:
        for code in codes:
            self.count("texts_failed", 1, code)
