"""Tokenize: take texts of several jobs in turn, and make pieces of them for the scheduler."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from worker.contract.bisection import bisect
from worker.contract.errors import EmbedqError
from worker.contract.models import MOST_WINDOWS
from worker.encoder.protocol import Encoder
from worker.encoder.tokens import TokenBlock
from worker.engine.chunks import split
from worker.engine.job import Job, Piece
from worker.engine.metrics import Counts
from worker.engine.scheduler import Scheduler

#: Texts of one call of the tokenizer, and of one job in it: a large job is tokenized in parts, so
#: that a small one behind it does not wait. A job that may split each text has smaller parts.
_TEXTS_PER_CALL = 512
_TEXTS_PER_JOB = 256
_LONG_TEXTS_PER_JOB = 16
#: Characters of the texts of one job in a call, unless one text has more: some tenths of a second.
_CHARACTERS_PER_JOB = 2**20


class Slice(NamedTuple):
    """Texts `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int


class Tokenize:
    """The stage that tokenizes. Its own thread executes `run`, any thread the other methods."""

    def __init__(
        self, encoders: Mapping[str, Encoder], scheduler: Scheduler, counts: Counts
    ) -> None:
        self._encoders = encoders
        self._scheduler = scheduler
        self._counts = counts

    def run(self) -> None:
        """Tokenize until the engine closes."""
        while True:
            with self._scheduler.lock:
                slices = self._scheduler.tokenize.take(next_slices)
            if not slices:
                return
            self.tokenize(slices)

    def tokenize_isolated(self, job: Job) -> None:
        """Tokenize the next texts of an isolated job."""
        with self._scheduler.lock:
            slices = next_slices(deque([job]))
        if slices:
            self.tokenize(slices)

    def tokenize(self, slices: Sequence[Slice]) -> None:
        """Tokenize slices of one model and prompt, and pass them to the scheduler."""
        begun = time.monotonic()
        found = tokenized(self._encoders[slices[0].job.info.name], slices)
        seconds = time.monotonic() - begun
        codes = [fault.code for fault in found.faults]
        self._counts.tokenised(slices, seconds, codes, len(found.truncated))
        estimates = [job.estimate(start, stop) for job, start, stop in slices]
        with self._scheduler.lock:
            for job, index in found.truncated:
                job.truncated.append(index)
            for (job, _, _), tokens in zip(slices, estimates, strict=True):
                self._scheduler.weigh(job, -tokens)
            self._scheduler.add(found.pieces)
            for job, index, code, message in found.faults:
                job.fail(index, code, message)
            self._scheduler.complete({job for job, *_ in found.faults if job.ended})


def next_slices(jobs: deque[Job]) -> list[Slice]:
    """Take the texts of one call, of one model and prompt, from the first jobs.

    Cancelled jobs are dropped, unfinished ones move to the end. Return [] if no job is left.
    """
    slices: list[Slice] = []
    left = _TEXTS_PER_CALL
    unfinished: list[Job] = []
    while jobs and left:
        job = jobs[0]
        if slices and not _alike(job, slices[0].job):
            break
        jobs.popleft()
        if job.cancelled:
            continue
        start = job.tokenized
        most = _TEXTS_PER_JOB if job.options.long == "cut" else _LONG_TEXTS_PER_JOB
        job.tokenized = stop = _stop(job, min(start + min(left, most), len(job.texts)))
        left -= stop - start
        slices.append(Slice(job, start, stop))
        if stop < len(job.texts):
            unfinished.append(job)
    jobs.extend(unfinished)
    return slices


class TextFault(NamedTuple):
    """Text `place` of a job, which cannot be tokenized."""

    job: Job
    place: int
    code: str
    message: str


class Tokenized(NamedTuple):
    """Tokenized texts."""

    pieces: list[Piece]
    faults: list[TextFault]
    #: Texts that were truncated, by job and index.
    truncated: list[tuple[Job, int]]


def tokenized(encoder: Encoder, slices: Sequence[Slice]) -> Tokenized:
    """Tokenize slices of one prompt in one call, and texts in chunks in further ones.

    A text that makes the tokenizer fail does not affect the others. Changes only the jobs' chunks.
    """
    found = Tokenized([], [], [])
    texts, places = [], []
    for job, start, stop in slices:
        for index, text in enumerate(job.texts[start:stop], start):
            if index in job.hits:
                continue
            if isinstance(text, str):
                texts.append(text)
                places.append((job, index))
            else:
                message = f"a {type(text).__name__} is not a string"
                found.faults.append(TextFault(job, index, "invalid_text", message))
    for start, part, block in bisect(texts, partial(_tokens, encoder, slices[0].job.prompt)):
        if isinstance(block, Exception):
            found.faults.append(_unreadable(*places[start], block))
            continue
        covered = places[start : start + len(part)]
        apart = {
            row
            for row in block.truncated.nonzero()[0].tolist()
            if not _stays_truncated(encoder, *covered[row], found)
        }
        found.pieces.extend(_pieces(block, covered, apart))
    return found


def _stop(job: Job, stop: int) -> int:
    """The end of a job's next texts, at most `stop`: `_CHARACTERS_PER_JOB`, or one text."""
    if job.size <= _CHARACTERS_PER_JOB:
        return stop
    left = _CHARACTERS_PER_JOB
    for at in range(job.tokenized, stop):
        left -= len(job.texts[at]) if isinstance(job.texts[at], str) else 0
        if left < 0:
            return max(at, job.tokenized + 1)
    return stop


def _alike(job: Job, other: Job) -> bool:
    """Whether one call of the tokenizer can take texts of both."""
    return job.info.name == other.info.name and job.prompt == other.prompt


def _tokens(encoder: Encoder, prompt: str | None, texts: Sequence[str]) -> TokenBlock | Exception:
    try:
        return encoder.tokenize(texts, prompt)
    except Exception as error:  # noqa: BLE001 - the failure of one text
        return error


def _stays_truncated(encoder: Encoder, job: Job, index: int, found: Tokenized) -> bool:
    """Whether a text past the model's limit stays truncated; else it fails or becomes chunks."""
    chunks = None
    if job.options.long == "mean":
        try:
            chunks = split(encoder, job.texts[index], job.prompt)
        except Exception as error:  # noqa: BLE001 - the failure of this text alone
            found.faults.append(_unreadable(job, index, error))
            return False
    if chunks is None or chunks.cut:
        if not job.options.truncate:
            limit = f"{encoder.info.max_tokens} tokens"
            most = limit if chunks is None else f"{MOST_WINDOWS} windows of {limit}"
            message = f"the text has more than {most}"
            found.faults.append(TextFault(job, index, "text_too_long", message))
            return False
        found.truncated.append((job, index))
    if chunks is None:
        return True
    block = chunks.block
    first = job.add_chunks(index, len(block))
    found.pieces.append(Piece(job, block, block.offsets.tolist(), 0, len(block), first))
    return False


def _unreadable(job: Job, index: int, error: Exception) -> TextFault:
    # The message of any other exception may contain the text.
    message = f"the tokenizer cannot take this text ({type(error).__name__})"
    if isinstance(error, EmbedqError):
        message = error.message
    return TextFault(job, index, "invalid_text", message)


def _pieces(
    block: TokenBlock, places: Sequence[tuple[Job, int]], apart: set[int]
) -> Iterator[Piece]:
    """Runs of consecutive texts of a job, without the rows `apart`."""
    ends = block.offsets.tolist()
    start = 0
    for row in range(1, len(places) + 1):
        job, index = places[start]
        follows = row < len(places) and places[row] == (job, index + row - start)
        if follows and row not in apart and start not in apart:
            continue
        if start not in apart:
            yield Piece(job, block, ends, start, row, index)
        start = row
