"""Which waiting texts make the next batch. No clock, lock or device: jobs in, pieces out."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from itertools import islice

from worker.engine.job import Job, Piece

#: No text is shorter: a special token and one of its own.
_FEWEST_TOKENS = 2
#: Jobs in a row whose next text does not fit, after which a batch counts as full.
_MISSES = 8


class Schedules:
    """The waiting texts of all models; each model gets a batch in turn."""

    def __init__(self, models: Iterable[str]) -> None:
        self._schedules = {name: Schedule() for name in models}
        self._turns = deque(self._schedules)

    def add(self, job: Job) -> None:
        """A job has texts waiting; again whenever more of it is tokenised."""
        self._schedules[job.info.name].add(job)

    def discard(self, job: Job) -> None:
        """Forget a job, waiting or not."""
        self._schedules[job.info.name].discard(job)

    def cut(self, budgets: Mapping[str, int]) -> list[Piece]:
        """The next batch of one model, within the budget of that one. Empty if none wait."""
        for _ in range(len(self._turns)):
            name = self._turns[0]
            self._turns.rotate(-1)
            pieces = self._schedules[name].cut(budgets[name])
            if pieces:
                return pieces
        return []

    def more(self, name: str, room: int) -> list[Piece]:
        """Further texts of a model for the batch just cut, at most `room` tokens."""
        return self._schedules[name].more(room)


class Schedule:
    """The jobs of one model that have tokenised texts waiting.

    The unit is a text. A batch is cut in turns: every waiting job gets an equal share of the
    room, at least one text, until the budget is full; who got something goes to the end of the
    line. The oldest job and the one at the front of the line lead every batch, taking turns at
    being first: where their texts fit together both are in it, where they do not each is in every
    other one. So nothing starves, and a small job behind a large one is in one of the next two.
    """

    def __init__(self) -> None:
        self._arrivals: OrderedDict[Job, None] = OrderedDict()
        self._turns: OrderedDict[Job, None] = OrderedDict()
        self._alone: deque[Job] = deque()
        self._alone_next = True
        self._oldest_first = True

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

    def more(self, room: int) -> list[Piece]:
        """Further texts for the batch just cut; none where that was a job's own."""
        return self._cut_shared(room, force=False) if self._alone_next else []

    def _cut_shared(self, budget: int, *, force: bool = True) -> list[Piece]:
        pieces: list[Piece] = []
        room = budget
        turn = self._line(budget)
        while turn and room >= _FEWEST_TOKENS:
            share = max(room // len(turn), 1)
            served, misses = [], 0
            for job in turn:
                piece = job.take(share, room, force=force and not pieces)
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
        """The two leaders, then those whose turn it is, as many as a batch can hold."""
        if not self._turns:
            return []
        oldest, front = next(iter(self._arrivals)), next(iter(self._turns))
        leaders = (oldest, front) if self._oldest_first else (front, oldest)
        self._oldest_first = leaders[0] is not oldest
        line = islice(self._turns, budget // _FEWEST_TOKENS + 1)
        return list(dict.fromkeys((*leaders, *line)))

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
            # A text between them may have been refused.
            and last.first + last.texts == piece.first
        ):
            merged[-1] = last._replace(stop=piece.stop)
        else:
            merged.append(piece)
    return merged
