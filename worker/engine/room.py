"""How many tokens wait and how many bytes of text are held, and how many more may come."""

from __future__ import annotations

from collections.abc import Iterable

from worker.contract.lanes import Lane
from worker.engine.job import Job

#: Batches worth of tokens to hold: enough to never run dry, little enough to leave to others.
_BATCHES_AHEAD = 8
_LEAST_AHEAD = 16_384
#: Bytes of text of one lane to hold, however few tokens the model reads of them. The texts of a
#: million tokens, which is what waits for a large model, have about 4 MiB.
_MOST_BYTES = 64 * 2**20
_BYTES_A_TOKEN = 4


class Room:
    """The tokens of jobs that are in no batch yet, and the texts of all that have not ended.

    The engine's lock guards every change.
    """

    def __init__(self) -> None:
        #: Tokens of all jobs; those of texts not tokenised yet are estimates.
        self.waiting = 0
        #: The same by lane, with at most one batch's worth of each job.
        self._crowds = dict.fromkeys(Lane, 0)
        #: Bytes of text by lane.
        self._bytes = dict.fromkeys(Lane, 0)

    def enter(self, job: Job) -> None:
        """The texts of a job are held."""
        self._bytes[job.lane] += job.bytes

    def leave(self, job: Job) -> None:
        """They are held no longer."""
        self._bytes[job.lane] -= job.bytes

    def weigh(self, job: Job, tokens: int) -> None:
        """So many tokens of a job wait more, or fewer."""
        most = job.info.batch_tokens
        before, after = job.waiting_tokens, job.waiting_tokens + tokens
        job.waiting_tokens = after
        self.waiting += tokens
        if before > most or after > most:
            tokens = min(after, most) - min(before, most)
        self._crowds[job.lane] += tokens

    def left(self, lane: Lane, budgets: Iterable[int]) -> int:
        """Tokens of a lane that may still come, given the budgets of all models; ≤ 0: none now.

        Each lane has room of its own, so that jobs of one never wait in the queue for those of
        another to be done. Of each job only one batch's worth counts, or a small job would wait
        there until the large one before it is done. Texts of many bytes and few tokens count by
        their bytes.
        """
        tokens = max(_BATCHES_AHEAD * sum(budgets), _LEAST_AHEAD) - self._crowds[lane]
        return min(tokens, (_MOST_BYTES - self._bytes[lane]) // _BYTES_A_TOKEN)
