"""A submission: the job that is offered, its relation to earlier ones, its bounds, its verdict."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from worker.contract import keys
from worker.contract.lanes import Lane

#: Seconds that an Idempotency-Key is remembered.
IDEMPOTENCY_TTL = 24 * 3600
#: Seconds that a shared job can be joined; nobody waits longer for one.
SHARED_TTL = 3600


def new_call() -> str:
    """A name of one call, by which a server knows a repeat of it."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be accepted; `tokens` and `result_bytes` are estimates."""

    id: str
    total: int
    tokens: int
    result_bytes: int
    model: str = ""
    owner: str = ""
    lane: Lane = Lane.NORMAL
    #: Tells a repeated call from another submission; names the caller of a shared job.
    call: str = field(default_factory=new_call)


class Once(NamedTuple):
    """How a submission relates to earlier ones of its owner.

    With a `key` (Idempotency-Key) an earlier one of the same `fingerprint` is replayed, of another
    is in conflict. `shared` instead joins one of the same `fingerprint` that has not ended.
    """

    key: str | None = None
    fingerprint: str = ""
    shared: bool = False

    @property
    def seconds(self) -> int:
        """How long the submission is remembered."""
        return SHARED_TTL if self.shared else IDEMPOTENCY_TTL

    def key_of(self, queue: str, owner: str) -> str:
        """The Redis key of the earlier submission; '' if each is its own."""
        if self.shared:
            return keys.shared(queue, owner, self.fingerprint)
        return keys.idempotency(queue, owner, self.key) if self.key else ""


EACH_ITS_OWN: Final = Once()


class Bounds(NamedTuple):
    """What may wait before a job is rejected; 0: no bound."""

    #: Tokens, and bytes of messages, of all jobs of the queue.
    tokens: int = 0
    bytes: int = 0
    #: The same of the jobs of one owner.
    owner_tokens: int = 0
    owner_bytes: int = 0
    #: Bytes of results, stored and expected.
    result_bytes: int = 0
    #: Tokens of an owner in a lane, beyond which its jobs wait in the next one.
    lane_share: int = 0


UNBOUNDED: Final = Bounds()


class Acceptance(NamedTuple):
    """How a submission ended.

    `accepted`, `replayed` or `conflict` (`job_id` is the earlier job), `full` or `owner_full`
    (tokens of all, of the owner), `bytes_full` or `owner_bytes_full` (bytes of messages), or
    `results_full` (bytes of results). `level` is the counter that decided, for an accepted job the
    tokens of all; 0 if it was not read. `lane` is where an accepted job waits, `created_at` the
    time of its acceptance, in seconds since the epoch by Redis' clock.
    """

    verdict: str
    job_id: str
    level: int = 0
    lane: Lane = Lane.NORMAL
    created_at: float | None = None
