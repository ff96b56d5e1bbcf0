"""A submission: the job, its relation to earlier ones, the capacity that it needs, the verdict."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from worker.contract import estimates, keys, messages
from worker.contract.jobs import JobOptions
from worker.contract.lanes import Lane
from worker.contract.models import ModelInfo

#: Seconds that an Idempotency-Key is remembered.
IDEMPOTENCY_TTL = 24 * 3600
#: Seconds that a shared job can be joined; no caller waits longer for one.
SHARED_TTL = 3600


def new_call() -> str:
    """A random name of one call, so that the server recognizes a repeat."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job about to be submitted; `tokens` and `result_bytes` are estimates."""

    id: str
    total: int
    tokens: int
    result_bytes: int
    #: None: Celery sends it.
    message: bytes | None = None
    model: str = ""
    #: The tenant that lists the job.
    owner: str = ""
    lane: Lane = Lane.NORMAL
    #: Distinguishes a repeated call from another submission; names the caller of a shared job.
    call: str = field(default_factory=new_call)

    @classmethod
    def of(
        cls,
        texts: Sequence[Any],
        options: JobOptions,
        model: ModelInfo,
        *,
        queue: str = "",
        job_id: str | None = None,
        owner: str = "",
        tenant: str | None = None,
        lane: Lane = Lane.NORMAL,
        deadline: float | None = None,
    ) -> JobRequest:
        """Make a request of texts, with estimates of its cost and, if `queue` is given, a message.

        The job counts as a job of `tenant` in the fair queue, by default of its owner. No worker
        starts it past `deadline`, seconds since the epoch by Redis' clock.
        """
        job_id = job_id or messages.new_id()
        dimensions = options.dimensions or model.dimensions
        is_blob = options.encoding_format == "base64"
        message = None
        if queue:
            tenant = owner if tenant is None else tenant
            message = messages.envelope(
                job_id, texts, options, queue, lane=lane, owner=tenant, deadline=deadline
            )
        return cls(
            job_id,
            total=len(texts),
            tokens=estimates.of_job(texts, options, model),
            result_bytes=estimates.result_bytes(len(texts), dimensions, base64=is_blob),
            message=message,
            model=model.name,
            owner=owner,
            lane=lane,
        )


class Deduplication(NamedTuple):
    """How a submission relates to earlier ones of its owner; by default they are independent.

    With a `key` (Idempotency-Key), an earlier submission with the same `fingerprint` is replayed;
    one with another fingerprint is a conflict. With `shared`, a job with the same `fingerprint`
    that has not ended is joined.
    """

    key: str | None = None
    fingerprint: str = ""
    shared: bool = False

    @property
    def seconds(self) -> int:
        """Seconds that the submission is remembered."""
        return SHARED_TTL if self.shared else IDEMPOTENCY_TTL

    def key_of(self, queue: str, owner: str) -> str:
        """The Redis key of the earlier submission; '' if submissions are independent."""
        if self.shared:
            return keys.shared(queue, owner, self.fingerprint)
        return keys.idempotency(queue, owner, self.key) if self.key else ""


class QueueCapacity(NamedTuple):
    """Limits beyond which a job is rejected; 0: unlimited."""

    #: Tokens, and bytes of messages, of all jobs of the queue.
    tokens: int = 0
    bytes: int = 0
    #: The same for the jobs of one owner.
    owner_tokens: int = 0
    owner_bytes: int = 0
    #: Bytes of results, stored and expected.
    result_bytes: int = 0
    #: Tokens of an owner in a lane, beyond which its jobs go to the next lane.
    lane_share: int = 0


EACH_ITS_OWN: Final = Deduplication()
UNLIMITED: Final = QueueCapacity()


class Acceptance(NamedTuple):
    """How a submission ended.

    `accepted`, `replayed` or `conflict` (`job_id` is the earlier job), `full` or `owner_full`
    (tokens of all, of the owner), `bytes_full` or `owner_bytes_full` (bytes of messages), or
    `results_full` (bytes of results). `level` is the counter that decided, for an accepted job the
    tokens of all; 0 if it was not read. `lane` is the lane of an accepted job, `created_at` the
    time of its acceptance, in seconds since the epoch by Redis' clock.
    """

    verdict: str
    job_id: str
    level: int = 0
    lane: Lane = Lane.NORMAL
    created_at: float | None = None
