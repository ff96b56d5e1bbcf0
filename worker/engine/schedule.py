"""Which waiting texts make the next batch. No clock, lock or device: jobs in, pieces out."""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice

from worker.engine.job import Job, Piece

#: No text is shorter: a special token and one of its own.
_FEWEST_TOKENS = 2
#: Jobs in a row whose next text does not fit, after which a batch counts as full.
_MISSES = 8


class Schedule:
    """The jobs of one model that have tokenised texts waiting.

    The unit is a text. A batch is cut in turns: every waiting job gets an equal share of the
    room, at least one text, until the budget is full; who got something goes to the end of the
    line. The job that has waited longest is in every batch, so nothing starves, and a small job
    behind a large one is in the next.
    """

    def __init__(self) -> None:
        self._arrivals: OrderedDict[Job, None] = OrderedDict()
        self._turns: OrderedDict[Job, None] = OrderedDict()
        self._alone: deque[Job] = deque()
        self._alone_next = True

    def __bool__(self) -> bool:
        return bool(self._turns or self._alone)

    def add(self, job: Job) -> None:
        """A job has texts waiting; again whenever more of it is tokenised."""
        if job.alone:
            if job not in self._alone:
                self._alone.append(job)
            return
        self._arrivals.setdefault(job)
        self._turns.setdefault(job)

    def discard(self, job: Job) -> None:
        """Forget a job, waiting or not."""
        self._arrivals.pop(job, None)
        self._turns.pop(job, None)
        if job.alone and job in self._alone:
            self._alone.remove(job)

    def cut(self, budget: int) -> list[Piece]:
        """The next batch: at most `budget` tokens, or one text that has more. Empty if none wait.

        A job that must run alone has a batch of its own, every other one at most.
        """
        if self._alone and (self._alone_next or not self._turns):
            self._alone_next = False
            return self._cut_alone(budget)
        self._alone_next = True
        return self._cut_shared(budget)

    def _cut_shared(self, budget: int) -> list[Piece]:
        pieces: list[Piece] = []
        room = budget
        turn = self._line(budget)
        while turn and room >= _FEWEST_TOKENS:
            share = max(room // len(turn), 1)
            served, misses = [], 0
            for job in turn:
                piece = job.take(share, room, force=not pieces)
                if piece is None:
                    misses += 1
                    if misses == _MISSES:
                        break
                    continue
                misses = 0
                pieces.append(piece)
                room -= piece.tokens
                if job.chunks:
                    served.append(job)
            turn = served
        for piece in pieces:
            self._after(piece.job)
        return _merged(pieces)

    def _line(self, budget: int) -> list[Job]:
        """The oldest job, then those whose turn it is, as many as a batch can hold."""
        oldest = next(iter(self._arrivals), None)
        if oldest is None:
            return []
        line = islice(self._turns, budget // _FEWEST_TOKENS + 1)
        return [oldest, *(job for job in line if job is not oldest)]

    def _after(self, job: Job) -> None:
        if job.chunks:
            self._turns.move_to_end(job)
        else:
            self._turns.pop(job, None)
            self._arrivals.pop(job, None)

    def _cut_alone(self, budget: int) -> list[Piece]:
        job = self._alone[0]
        pieces: list[Piece] = []
        room = budget
        while (piece := job.take(room, room, force=not pieces)) is not None:
            pieces.append(piece)
            room -= piece.tokens
        if not job.chunks:
            self._alone.popleft()
        return pieces


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Pieces of one job that follow one another, as one."""
    if len({id(piece.job) for piece in pieces}) == len(pieces):
        return pieces
    merged: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (id(piece.job), piece.first)):
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.job is piece.job
            and last.block is piece.block
            and last.stop == piece.start
        ):
            merged[-1] = last._replace(stop=piece.stop)
        else:
            merged.append(piece)
    return merged
