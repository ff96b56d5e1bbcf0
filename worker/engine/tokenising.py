"""Texts into tokens, whatever one of them does to the tokenizer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from worker.contract import estimates
from worker.contract.errors import EmbedqError
from worker.contract.lanes import Lane
from worker.contract.models import MOST_WINDOWS, most_tokens
from worker.encoder.protocol import Encoder
from worker.encoder.tokens import TokenBlock
from worker.engine.isolation import Isolation
from worker.engine.job import Job, Piece
from worker.engine.windows import split
from worker.watchdog import Busy

#: Texts of one call of the tokenizer, and of one job in it: a large job is tokenised in parts, so
#: that a small one behind it does not wait. One that may split each text is in smaller parts.
_TEXTS_A_CALL = 512
_TEXTS_A_JOB = 256
_LONG_TEXTS_A_JOB = 16
#: Characters of the texts of one job in a call, if no text alone has more: some tenths of a second.
_CHARACTERS_A_JOB = 2**20


class Slice(NamedTuple):
    """Texts `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int

    @property
    def estimate(self) -> int:
        """Tokens that they may have."""
        texts = self.job.texts[self.start : self.stop]
        return estimates.tokens(texts, most_tokens(self.job.options, self.job.info))


class Intake:
    """Jobs with texts that are not tokenised yet: lane by lane, those of a lane in turns.

    Its lock is the engine's; the caller of any method holds it.
    """

    def __init__(self, lock: threading.Lock, isolation: Isolation) -> None:
        self._station = isolation.station("tokenise", lock)
        self._lanes: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        self._borrowed = False

    def put(self, *jobs: Job) -> None:
        """Jobs have texts to tokenise."""
        for job in jobs:
            self._lanes[job.lane].append(job)

    @property
    def waiting(self) -> bool:
        """Whether there are texts to tokenize."""
        return any(self._lanes.values())

    def wake(self) -> None:
        """Let the tokenizer thread take what there is."""
        self._station.filled.notify()

    def close(self) -> None:
        """Let `take` come to an end, whatever is left."""
        self._station.close()

    @property
    def busy(self) -> Busy:
        """Whether the tokenizer is called now."""
        return self._station.busy

    def take(self) -> list[Slice]:
        """Wait for texts for one call of the tokenizer; empty once closed."""
        return self._station.take(self._next)

    def borrow(self) -> list[Slice]:
        """Texts for one call of the tokenizer on another thread, which calls `give_back` then.

        Empty if there are none, or if the tokenizer is called now: there is one call at a time.
        """
        if self._borrowed or self.busy.since is not None:
            return []
        slices = self._next()
        self._borrowed = bool(slices)
        return slices

    def give_back(self) -> None:
        """That call has ended; what is left is for the tokenizer thread."""
        self._borrowed = False
        self.wake()

    def _next(self) -> list[Slice]:
        """Texts of one lane, model and prompt, of each job some; empty if there are none."""
        if self._borrowed:
            return []
        for jobs in self._lanes.values():
            if slices := front(jobs):
                return slices
        return []


class Refusal(NamedTuple):
    """Text `at` of a job, which cannot be embedded."""

    job: Job
    at: int
    code: str
    message: str


class Tokenised(NamedTuple):
    """What one call of the tokenizer came to; `cut` are texts by job and index."""

    pieces: list[Piece]
    refusals: list[Refusal]
    cut: list[tuple[Job, int]]


def tokenise(encoder: Encoder, slices: Sequence[Slice], prompt: str | None) -> Tokenised:
    """Tokens of some slices in one call, and in some more for texts that are read in windows.

    Runs on the tokeniser thread; of the jobs' state it touches their windows alone.
    """
    found = Tokenised([], [], [])
    texts = []
    good = []
    for job, start, stop in slices:
        for index, text in enumerate(job.texts[start:stop], start):
            if index in job.recalled:
                continue
            if isinstance(text, str):
                texts.append(text)
                good.append((job, index))
            else:
                message = f"a {type(text).__name__} is not a string"
                found.refusals.append(Refusal(job, index, "invalid_text", message))
    for start, stop, block in _blocks(encoder, texts, prompt, 0):
        if isinstance(block, Exception):
            found.refusals.append(_unreadable(*good[start], block))
            continue
        places = good[start:stop]
        apart = {
            row
            for row in block.truncated.nonzero()[0].tolist()
            if not _taken_cut(encoder, *places[row], found)
        }
        found.pieces.extend(_pieces(block, places, apart))
    return found


def front(jobs: deque[Job]) -> list[Slice]:
    """Texts of one call, taken from the jobs at the front; none of jobs that were cancelled."""
    slices: list[Slice] = []
    left = _TEXTS_A_CALL
    unfinished: list[Job] = []
    while jobs and left:
        job = jobs[0]
        if slices and not _alike(job, slices[0].job):
            break
        jobs.popleft()
        if job.cancelled:
            continue
        start = job.tokenised
        most = _TEXTS_A_JOB if job.options.long == "cut" else _LONG_TEXTS_A_JOB
        job.tokenised = stop = _stop(job, min(start + min(left, most), len(job.texts)))
        left -= stop - start
        slices.append(Slice(job, start, stop))
        if stop < len(job.texts):
            unfinished.append(job)
    jobs.extend(unfinished)
    return slices


def _stop(job: Job, stop: int) -> int:
    """The end of a job's next texts, at most `stop`: `_CHARACTERS_A_JOB`, or one text."""
    if job.bytes <= _CHARACTERS_A_JOB:
        return stop
    left = _CHARACTERS_A_JOB
    for at in range(job.tokenised, stop):
        left -= len(job.texts[at]) if isinstance(job.texts[at], str) else 0
        if left < 0:
            return max(at, job.tokenised + 1)
    return stop


def _alike(job: Job, other: Job) -> bool:
    """Whether one call of the tokenizer can take texts of both."""
    return job.info.name == other.info.name and job.prompt == other.prompt


def _blocks(
    encoder: Encoder, texts: Sequence[str], prompt: str | None, offset: int
) -> Iterator[tuple[int, int, TokenBlock | Exception]]:
    """One block for all texts; where one of them raises, halves until it is alone."""
    if not texts:
        return
    try:
        block = encoder.tokenize(texts, prompt)
    except Exception as error:  # noqa: BLE001 - the text at fault answers for it
        if len(texts) == 1:
            yield offset, offset + 1, error
            return
        middle = len(texts) // 2
        yield from _blocks(encoder, texts[:middle], prompt, offset)
        yield from _blocks(encoder, texts[middle:], prompt, offset + middle)
    else:
        yield offset, offset + len(texts), block


def _taken_cut(encoder: Encoder, job: Job, index: int, found: Tokenised) -> bool:
    """Whether a text past the model's limit goes on cut; else it is refused, or in windows."""
    windows = None
    if job.options.long == "mean":
        try:
            windows = split(encoder, job.texts[index], job.prompt)
        except Exception as error:  # noqa: BLE001 - the text at fault answers for it
            found.refusals.append(_unreadable(job, index, error))
            return False
    if windows is None or windows.cut:
        if not job.options.truncate:
            limit = f"{encoder.info.max_tokens} tokens"
            most = limit if windows is None else f"{MOST_WINDOWS} windows of {limit}"
            message = f"the text has more than {most}"
            found.refusals.append(Refusal(job, index, "text_too_long", message))
            return False
        found.cut.append((job, index))
    if windows is None:
        return True
    block = windows.block
    first = job.split(index, len(block))
    found.pieces.append(Piece(job, block, block.offsets.tolist(), 0, len(block), first))
    return False


def _unreadable(job: Job, index: int, error: Exception) -> Refusal:
    # The message of any other exception may hold the text.
    message = f"the tokenizer cannot take this text ({type(error).__name__})"
    if isinstance(error, EmbedqError):
        message = error.message
    return Refusal(job, index, "invalid_text", message)


def _pieces(
    block: TokenBlock, places: Sequence[tuple[Job, int]], apart: set[int]
) -> Iterator[Piece]:
    """Runs of texts that follow one another in a job, without the rows `apart`."""
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
