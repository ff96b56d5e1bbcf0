"""Start-time fair queueing over lanes, tenants and jobs: which waiting texts run next.

P. Goyal, H. Vin and H. Cheng, "Start-time Fair Queuing", SIGCOMM 1996, as a tree: the lanes by
weight, in each lane its tenants alike, of each tenant its jobs alike. A node of the tree has a
time, and each child a start: the time of its arrival, or the end of its last service if that is
later. The child with the earliest start is served; the node's time becomes that start, and the
child's start increases by the tokens served, divided by its weight. So a child that arrives late is
served next. While two children wait, |W_i / w_i - W_j / w_j| <= q_i / w_i + q_j / w_j for the
tokens W that each is served, its weight w and its quantum q: a batch of a lane, an eighth of one of
a tenant or job, or one text that is larger. `tests/engine/test_fair_queue.py` simulates the bounds.

No clock, lock or device: jobs in, pieces out.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from worker.contract.lanes import Lane
from worker.engine.job import Job, Piece

#: A lane's part of the tokens while texts of all lanes wait.
WEIGHTS: Final[Mapping[Lane, float]] = {Lane.INTERACTIVE: 8.0, Lane.NORMAL: 2.0, Lane.BULK: 1.0}
#: A tenant gets at most this part of a batch before the others are served.
_QUANTUM = 8
#: The part of a batch that is a job's turn. Most jobs end in one, so that jobs of the same size end
#: one after the other; a small job has room in the batch in which the turn of a large one ends.
_TURN = 0.75
#: Children that a node remembers although they do not wait.
_REMEMBERED = 1024

K = TypeVar("K", bound=Hashable)


class FairQueue:
    """The jobs of one model that have tokenized texts waiting."""

    def __init__(self) -> None:
        self._root = _Node[Lane]()
        self._lanes = {lane: _Node[str]() for lane in Lane}
        self._jobs: dict[tuple[Lane, str], _Node[Job]] = {}
        #: Tokens of these texts.
        self.tokens = 0

    def add(self, job: Job, tokens: int) -> None:
        """Add a job, or `tokens` more of it."""
        self.tokens += tokens
        jobs = self._jobs.get((job.lane, job.tenant))
        if jobs is None:
            jobs = self._jobs[job.lane, job.tenant] = _Node()
            self._lanes[job.lane].enter(job.tenant)
            self._root.enter(job.lane)
        jobs.tokens += tokens
        jobs.enter(job)

    def discard(self, job: Job, tokens: int) -> None:
        """Remove a job, of which `tokens` wait."""
        self.tokens -= tokens
        if jobs := self._jobs.get((job.lane, job.tenant)):
            jobs.tokens -= tokens
            jobs.leave(job, comes_back=False)
            self._leave(job.lane, job.tenant)
            if not self._lanes[job.lane]:
                self._root.leave(job.lane)

    def take(
        self, budget: int, lanes: Collection[Lane] = tuple(Lane), *, room: int | None = None
    ) -> list[Piece]:
        """Take texts of these lanes for a batch of `budget` tokens, or one text.

        `room`: the remaining tokens of the batch; None for all of it. Interactive texts share a
        batch with no other lane: it takes no longer than it must.
        """
        pieces: list[Piece] = []
        room, fits = budget if room is None else room, True
        waiting = [lane for lane in lanes if lane in self._root]
        while waiting and room > 0 and fits:
            lane = min(waiting, key=lambda one: (self._root.start_of(one), one))
            before = room
            room, fits = self._take_lane(lane, budget, room, pieces)
            self._serve_lane(lane, before - room)
            waiting = [one for one in waiting if one not in (lane, Lane.INTERACTIVE)]
            if lane is Lane.INTERACTIVE:
                break
        self.tokens -= sum(piece.tokens for piece in pieces)
        return _merged(pieces)

    def take_small(self, budget: int, besides: Collection[str] = ()) -> list[Piece]:
        """Take all texts of an interactive tenant, not in `besides`, of at most `budget` tokens."""
        lane, pieces = Lane.INTERACTIVE, list[Piece]()
        tenants = self._lanes[lane]
        small = [
            tenant
            for tenant in tenants
            if tenant not in besides and self._jobs[lane, tenant].tokens <= budget
        ]
        if not small:
            return []
        tenant = min(small, key=tenants.start_of)
        tokens = self._jobs[lane, tenant].tokens
        self._take_turn(lane, tenant, pieces, share=tokens, room=tokens, turn=0.0)
        self._serve_lane(lane, tokens)
        self.tokens -= tokens
        return _merged(pieces)

    def _take_lane(
        self, lane: Lane, budget: int, room: int, pieces: list[Piece]
    ) -> tuple[int, bool]:
        """Add texts of a lane to `pieces`. Return the room left, and whether the next text fits."""
        tenants, share = self._lanes[lane], max(budget // _QUANTUM, 1)
        while tenants and room > 0:
            before = len(pieces)
            room -= self._take_turn(
                lane,
                tenants.first(),
                pieces,
                share=min(share, room),
                room=room,
                turn=budget * _TURN,
            )
            if len(pieces) == before:
                return room, False
        return room, True

    def _take_turn(
        self, lane: Lane, tenant: str, pieces: list[Piece], *, share: int, room: int, turn: float
    ) -> int:
        """Add a tenant's texts to `pieces`: `share` tokens at most, or one text. Return the tokens.

        That text has at most `room` tokens, or any number as the first of the batch. `turn`: of a
        job, see `_Node.serve`.
        """
        jobs, taken, before = self._jobs[lane, tenant], 0, len(pieces)
        while jobs:
            job = jobs.first()
            piece = job.take(share - taken, room, force=not pieces)
            if piece is None:
                break
            pieces.append(piece)
            tokens = piece.tokens
            taken += tokens
            jobs.serve(job, tokens, turn)
            if not job.waiting:
                jobs.leave(job, comes_back=job.tokenized < len(job.texts))
            # Only the first text may be larger than the share.
            room = share - taken
        if len(pieces) > before:
            jobs.tokens -= taken
            self._lanes[lane].serve(tenant, taken)
            self._leave(lane, tenant)
        return taken

    def _serve_lane(self, lane: Lane, tokens: int) -> None:
        """A lane is served a batch at a time, however many of its jobs are in it."""
        self._root.serve(lane, tokens / WEIGHTS[lane])
        if not self._lanes[lane]:
            self._root.leave(lane)

    def _leave(self, lane: Lane, tenant: str) -> None:
        """Remove a tenant without waiting texts."""
        if not self._jobs[lane, tenant]:
            del self._jobs[lane, tenant]
            self._lanes[lane].leave(tenant)


class ModelQueues:
    """The queues of all models, which have batches in turn."""

    def __init__(self, models: Iterable[str]) -> None:
        self._queues = {name: FairQueue() for name in models}
        self._turns = deque(self._queues)

    def __getitem__(self, model: str) -> FairQueue:
        return self._queues[model]

    @property
    def tokens(self) -> int:
        """Tokens that wait, of all models."""
        return sum(queue.tokens for queue in self._queues.values())

    def in_turn(self) -> list[tuple[str, FairQueue]]:
        """The models and their queues, the one that was served last at the end."""
        return [(name, self._queues[name]) for name in self._turns]

    def served(self, model: str) -> None:
        """A model had a batch."""
        self._turns.remove(model)
        self._turns.append(model)


class _Node(Generic[K]):
    """The children of one node that wait, by their starts."""

    def __init__(self) -> None:
        #: Tokens of waiting texts; `FairQueue` counts them.
        self.tokens = 0
        self._time = 0.0
        self._starts: dict[K, float] = {}
        #: Starts of children that do not wait and may come again.
        self._remembered: dict[K, float] = {}
        #: Tokens that children were served in their current turn.
        self._begun: dict[K, float] = {}
        #: An entry is stale if its start differs from that in `_starts`.
        self._heap: list[tuple[float, bool, int, K]] = []
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __contains__(self, child: K) -> bool:
        return child in self._starts

    def __iter__(self) -> Iterator[K]:
        return iter(self._starts)

    def start_of(self, child: K) -> float:
        return self._starts[child]

    def enter(self, child: K) -> None:
        """A child waits."""
        if child not in self._starts:
            self._set(child, max(self._time, self._remembered.pop(child, 0.0)), came=True)

    def leave(self, child: K, *, comes_back: bool = True) -> None:
        """A child stops waiting. `comes_back`: it may wait again."""
        start = self._starts.pop(child, 0.0) + self._begun.pop(child, 0.0)
        if comes_back and start > self._time:
            self._remembered[child] = start
            if len(self._remembered) > _REMEMBERED:
                late = {one: at for one, at in self._remembered.items() if at > self._time}
                self._remembered = late if len(late) <= _REMEMBERED else {}

    def first(self) -> K:
        """The child with the earliest start. At least one waits."""
        while self._starts.get(self._heap[0][-1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][-1]

    def serve(self, child: K, cost: float, turn: float = 0.0) -> None:
        """A child is served: tokens divided by its weight. It stays first for its whole turn."""
        start, cost = self._starts[child], cost + self._begun.pop(child, 0.0)
        self._time = max(self._time, start)
        if cost < turn:
            self._begun[child] = cost
        else:
            self._set(child, start + cost, came=False)

    def _set(self, child: K, start: float, *, came: bool) -> None:
        """Of children with the same start those that came are first, in their order."""
        self._starts[child] = start
        heapq.heappush(self._heap, (start, not came, next(self._numbers), child))


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
