"""The waiting texts of one lane: a share for each tenant, and of that for each of its jobs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable
from itertools import islice

from worker.engine.job import Job, Piece

#: No text is shorter: a special token and one of its own.
_FEWEST_TOKENS = 2
#: Jobs in a row whose next text does not fit, after which a share counts as used up.
_MISSES = 8


class Shares:
    """The jobs of one lane, by tenant.

    Every tenant gets an equal share of the room, at least one text, until the room is used; who
    got something goes to the end of the line. So what one of them has queued costs the others
    nothing but its share, and nothing starves; within a tenant's share see `Line`.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, Line] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether a job waits."""
        return bool(self._lines)

    def add(self, job: Job) -> None:
        """A job has texts waiting; again whenever more of it is tokenised."""
        line = self._lines.get(job.tenant)
        if line is None:
            line = self._lines[job.tenant] = Line()
        line.add(job)

    def discard(self, job: Job) -> None:
        """Forget a job, waiting or not."""
        line = self._lines.get(job.tenant)
        if line is not None:
            line.discard(job)
            if not line:
                del self._lines[job.tenant]

    def with_little(self, most: int) -> list[str]:
        """Tenants for whom at most `most` tokens wait, if more wait for others; else none."""
        little = [tenant for tenant, line in self._lines.items() if not line.exceeds(most)]
        return little if len(little) < len(self._lines) else []

    def serve(
        self,
        share: int,
        room: int,
        *,
        leads: bool,
        force: bool = False,
        only: Iterable[str] | None = None,
    ) -> list[Piece]:
        """Texts of at most `share` tokens, but one where that fits into `room`.

        `leads`: for the first time in a batch. `force` takes one text whatever it holds. `only`:
        for these tenants.
        """
        pieces: list[Piece] = []
        served: dict[str, None] = {}
        line_up = self._lines if only is None else only
        turn = list(islice(line_up, share // _FEWEST_TOKENS + 1))
        left = share
        while turn and (left >= _FEWEST_TOKENS or not pieces):
            portion = max(left // len(turn), 1)
            got_some = []
            for tenant in turn:
                if pieces and left < _FEWEST_TOKENS:
                    break
                line = self._lines[tenant]
                most = left if pieces else room
                got = line.serve(min(portion, most), most, leads=leads, force=force and not pieces)
                if got:
                    pieces += got
                    left -= sum(piece.tokens for piece in got)
                    served[tenant] = None
                    if line:
                        got_some.append(tenant)
            # One tenant alone has taken what there is for it.
            turn = got_some if len(turn) > 1 else []
            leads = False
        for tenant in served:
            if self._lines[tenant]:
                self._lines.move_to_end(tenant)
            else:
                del self._lines[tenant]
        return pieces

    def take_whole(self, room: int, but: Container[str]) -> list[Piece]:
        """All of some jobs of tenants other than `but` who have at most `room` tokens waiting."""
        pieces: list[Piece] = []
        few = [
            tenant
            for tenant, line in self._lines.items()
            if tenant not in but and not line.exceeds(room)
        ]
        for tenant in few:
            got = self._lines[tenant].take_whole(room)
            if not got:
                continue
            pieces += got
            room -= sum(piece.tokens for piece in got)
            if self._lines[tenant]:
                self._lines.move_to_end(tenant)
            else:
                del self._lines[tenant]
        return pieces


class Line:
    """The jobs of one tenant in one lane.

    Every waiting job gets an equal share, at least one text; who got something goes to the end of
    the line. The oldest job and the one at the front lead every batch, taking turns at being
    first: where their texts fit together both are in it, where they do not each is in every other
    one. So nothing starves, and a small job behind a large one is in one of the next two.
    """

    def __init__(self) -> None:
        self._arrivals: OrderedDict[Job, None] = OrderedDict()
        self._turns: OrderedDict[Job, None] = OrderedDict()
        self._oldest_first = True

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, job: Job) -> None:
        self._arrivals.setdefault(job)
        self._turns.setdefault(job)

    def discard(self, job: Job) -> None:
        self._arrivals.pop(job, None)
        self._turns.pop(job, None)

    def exceeds(self, most: int) -> bool:
        """Whether more than `most` tokens wait."""
        waiting = 0
        for job in self._turns:
            waiting += sum(piece.tokens for piece in job.chunks)
            if waiting > most:
                return True
        return False

    def serve(self, share: int, room: int, *, leads: bool, force: bool) -> list[Piece]:
        """As `Shares.serve`."""
        pieces: list[Piece] = []
        left = share
        turn = self._in_turn(share, leads=leads)
        while turn and (left >= _FEWEST_TOKENS or not pieces):
            portion = max(left // len(turn), 1)
            served, misses = [], 0
            for job in turn:
                most = left if pieces else room
                piece = job.take(portion, most, force=force and not pieces)
                if piece is None:
                    misses += 1
                    if misses == _MISSES:
                        break
                    continue
                misses = 0
                pieces.append(piece)
                left -= piece.tokens
                if job.chunks:
                    served.append(job)
            turn = served
        for piece in pieces:
            self._after(piece.job)
        return pieces

    def take_whole(self, room: int) -> list[Piece]:
        """As `Shares.take_whole`."""
        pieces: list[Piece] = []
        for job in list(self._turns):
            tokens = sum(piece.tokens for piece in job.chunks)
            if tokens <= room and job.waits_whole:
                pieces += job.chunks
                room -= tokens
                job.chunks.clear()
                self._after(job)
        return pieces

    def _in_turn(self, share: int, *, leads: bool) -> list[Job]:
        """The two leaders, then those whose turn it is, as many as a share can hold."""
        if not self._turns:
            return []
        line = islice(self._turns, share // _FEWEST_TOKENS + 1)
        if not leads:
            return list(line)
        oldest, front = next(iter(self._arrivals)), next(iter(self._turns))
        leaders = (oldest, front) if self._oldest_first else (front, oldest)
        self._oldest_first = leaders[0] is not oldest
        return list(dict.fromkeys((*leaders, *line)))

    def _after(self, job: Job) -> None:
        if job.chunks:
            self._turns.move_to_end(job)
        else:
            self._turns.pop(job, None)
            self._arrivals.pop(job, None)
