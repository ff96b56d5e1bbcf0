"""Which waiting texts make the next batch. No clock, lock or device: jobs in, pieces out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Container, Iterable, Mapping, Set

from worker.contract.lanes import Lane
from worker.engine.job import Job, Piece
from worker.engine.shares import Shares

#: Batches that a lane waits through before it comes first.
_PATIENCE = 4
#: Where interactive jobs come, the batches between them are cut to this part of the budget, until
#: so many in a row found none: the next one to come waits for the rest of a short batch.
_SHORT_PART = 8
_SHORT_BATCHES = 16
#: Batches after which who overtook one is not taken to be about any more.
_ABOUT_BATCHES = 16
#: A tenant with no more than this part of a budget waiting has little.
_LITTLE_PART = 4


class Schedules:
    """The waiting texts of all models; each model gets a batch in turn.

    Beside the batches of the device thread there may be those of the express: small jobs of
    callers who would wait for a batch that is none of theirs.
    """

    def __init__(self, models: Iterable[str], express: Collection[str] = ()) -> None:
        """`express`: the models that can run a small batch beside a large one."""
        self._schedules = {name: Schedule(express=name in express) for name in models}
        self._turns = deque(self._schedules)
        #: Whether jobs may overtake the batch cut last, and of which tenants none may.
        self._open = False
        self._held_back: Set[str] = frozenset()
        #: Tenants who had much in the last interactive batch.
        self._crowd: Set[str] = frozenset()
        #: Whether those who wait for the batch cut last are in no hurry, while others may be.
        self.patient = False
        #: Batches for which somebody is taken to be about, since he overtook one: anybody, and
        #: somebody who is not of the crowd.
        self._hurried = self._others = 0
        self.express_runs = False

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
                self._look_at(pieces, budgets[name])
                return pieces
        self._open = False
        return []

    def cut_express(self, budgets: Mapping[str, int]) -> list[Piece]:
        """Jobs of one model that should not wait for the batch cut last; empty if there are none.

        All of what is left of each, so that no other batch holds texts of it at the same time.
        """
        pieces: list[Piece] = []
        if self._open:
            for name, budget in budgets.items():
                if pieces := self._schedules[name].cut_express(budget, self._held_back):
                    break
        self.express_runs = bool(pieces)
        if pieces:
            self._hurried = _ABOUT_BATCHES
        if any(piece.job.tenant not in self._crowd for piece in pieces):
            self._others = _ABOUT_BATCHES
        return pieces

    def more(self, name: str, room: int) -> list[Piece]:
        """Further texts of a model for the batch just cut, at most `room` tokens."""
        return self._schedules[name].more(room)

    def _look_at(self, pieces: list[Piece], budget: int) -> None:
        """Who waits for a batch of these pieces.

        Nobody of the interactive lane waits for a lower one, but for those who would keep others
        with little waiting there. A batch of that lane is worth waiting for, but for those who have
        little in it beside one who has much.
        """
        lanes = {piece.job.lane for piece in pieces}
        asked = lanes == {Lane.INTERACTIVE}
        if asked:
            tokens: Counter[str] = Counter()
            for piece in pieces:
                tokens[piece.job.tenant] += piece.tokens
            much = budget // _LITTLE_PART
            self._crowd = {tenant for tenant, held in tokens.items() if held > much}
        self._open = not (asked and not self._crowd)
        self._held_back = self._crowd if asked or self._others else frozenset()
        normal = {piece.job.tenant for piece in pieces if piece.job.lane is Lane.NORMAL}
        self.patient = self._open and normal <= self._crowd and self._hurried > 0
        self._hurried, self._others = max(self._hurried - 1, 0), max(self._others - 1, 0)


class Schedule:
    """The jobs of one model that have tokenised texts waiting.

    The unit is a text. Lanes are served in their order, each with what the ones before it leave,
    but where somebody waits for a job, its batch is for the interactive lane alone: it takes no
    longer than it must. Beside tenants who wait for a lot there, those who wait for little have
    every other such batch to themselves. A lane that waits and has not come first for `_PATIENCE`
    batches comes first in the next one, with half of the room. So an interactive job is in one of
    the next batches, and nothing starves; within a lane see `Shares`. The batches between, those
    that such a job may find running, are short, unless there is an express for it.
    """

    def __init__(self, *, express: bool = False) -> None:
        self._express = express
        #: Lanes that share a batch. Where there is an express, whoever waits is sooner there.
        self._in_company = [lane for lane in Lane if not (express and lane is Lane.INTERACTIVE)]
        self._lanes = {lane: Shares() for lane in Lane}
        #: Batches that a lane waited through since it last came first.
        self._waited = dict.fromkeys(Lane, 0)
        #: The lanes that may have texts in the batch cut last.
        self._joining = list(Lane)
        #: Batches to be cut short, unless an interactive job comes before.
        self._short = 0
        #: The same while interactive jobs wait, and whether the last was for those with little.
        self._short_shared = 0
        self._served_little = False

    def add(self, job: Job) -> None:
        """A job has texts waiting; again whenever more of it is tokenised."""
        self._lanes[job.lane].add(job)

    def discard(self, job: Job) -> None:
        """Forget a job, waiting or not."""
        self._lanes[job.lane].discard(job)

    def cut(self, budget: int) -> list[Piece]:
        """The next batch: at most `budget` tokens, or one text of more. Empty if none wait."""
        waiting = [lane for lane, shares in self._lanes.items() if shares]
        return self._cut_shared(waiting, budget) if waiting else []

    def cut_express(self, room: int, but: Container[str]) -> list[Piece]:
        """Whole jobs that somebody waits for, of at most `room` tokens, of tenants not in `but`."""
        return self._lanes[Lane.INTERACTIVE].take_whole(room, but)

    def more(self, room: int) -> list[Piece]:
        """Further texts for the batch just cut; none if that was short."""
        return _merged(self._fill([], room))

    def _cut_shared(self, waiting: list[Lane], budget: int) -> list[Piece]:
        little = self._with_little(budget, in_turn=waiting[0] is Lane.INTERACTIVE)
        first = waiting[0] if little else self._first(waiting)
        overdue = first is not waiting[0]
        asked = first is Lane.INTERACTIVE and not overdue
        short = not (self._express or little) and self._is_short(waiting)
        if short:
            budget = max(budget // _SHORT_PART, 1)
        share = budget // 2 if overdue else budget
        pieces = self._lanes[first].serve(
            share, budget, leads=True, force=True, only=little or None
        )
        self._joining = [first] if asked else self._in_company
        if not asked:
            pieces = self._fill(pieces, budget)
        if short or little:
            self._joining = []
        for lane in waiting:
            self._waited[lane] = 0 if lane is first else self._waited[lane] + 1
        return _merged(pieces)

    def _with_little(self, budget: int, *, in_turn: bool) -> list[str]:
        """The tenants that have this interactive batch to themselves; none in every other batch."""
        little = self._lanes[Lane.INTERACTIVE].with_little(budget // _LITTLE_PART)
        if little:
            self._short_shared = _SHORT_BATCHES
        self._served_little = in_turn and bool(little) and not self._served_little
        return little if self._served_little else []

    def _is_short(self, waiting: list[Lane]) -> bool:
        """Whether somebody waits, or may come, who should not wait for a whole batch."""
        if Lane.INTERACTIVE in waiting:
            self._short = _SHORT_BATCHES
            self._short_shared, left = max(self._short_shared - 1, 0), self._short_shared
        else:
            self._short, left = max(self._short - 1, 0), self._short
        return left > 0

    def _fill(self, pieces: list[Piece], budget: int) -> list[Piece]:
        """A batch, with what its lanes have for the rest of the room."""
        room = budget - sum(piece.tokens for piece in pieces)
        for lane in self._joining:
            if room > 0:
                more = self._lanes[lane].serve(room, room, leads=False)
                room -= sum(piece.tokens for piece in more)
                pieces = pieces + more
        return pieces

    def _first(self, waiting: list[Lane]) -> Lane:
        """The lane that has waited for too long, if one has, else the first in order."""
        longest = max(waiting, key=self._waited.__getitem__)
        return longest if self._waited[longest] >= _PATIENCE else waiting[0]


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
