"""A submission: the job that is offered, its relation to earlier ones, and how it went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from worker.contract import keys
from worker.contract.lanes import Lane

#: Seconds that an Idempotency-Key is remembered.
IDEMPOTENCY_TTL = 24 * 3600
#: Seconds that a shared job can be joined; nobody waits longer for one.
SHARED_TTL = 3600


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be accepted; `tokens` and `result_bytes` are estimates.

    `created` in seconds since the epoch.
    """

    id: str
    total: int
    tokens: int
    result_bytes: int
    model: str = ""
    owner: str = ""
    lane: Lane = Lane.NORMAL
    created: float = field(default_factory=time.time)


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

    def key_of(self, owner: str) -> str:
        """Where the earlier submission is noted; '' where each is its own."""
        if self.shared:
            return keys.shared(owner, self.fingerprint)
        return keys.idempotency(owner, self.key) if self.key else ""


EACH_ITS_OWN: Final = Once()


class Acceptance(NamedTuple):
    """How a submission ended.

    `accepted`, `replayed` or `conflict` (Idempotency-Key; `job_id` is the earlier job), `full`
    or `owner_full` (tokens of all, of the owner) or `results_full` (bytes of results). `level` is
    what the ledger holds then: tokens, or bytes where those are full; 0 where it was not asked.
    `lane` is where an accepted job waits.
    """

    verdict: str
    job_id: str
    level: int = 0
    lane: Lane = Lane.NORMAL
