"""From texts and options to an accepted job, or to the reason why not."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import redis

from api import quotas
from api.answers import json_body
from api.backend import Backend
from api.errors import Problem
from api.limits import STORE_RETRY, WORKER_RETRY, seconds_to_encode
from api.waits import NONE, Patience, Read, await_accepted, await_end
from worker.contract import estimates, jobs, messages
from worker.contract.jobs import JobOptions, Status
from worker.contract.lanes import Lane, list_of
from worker.contract.store import Acceptance, JobRecord, NewJob, Once

logger = logging.getLogger(__name__)

LONGEST_IDEMPOTENCY_KEY = 255
#: Seconds that a job can still be read after its caller waited for it: the answer may get lost.
KEPT_AFTER_ANSWER = 60
#: Batches' worth of tokens that one owner may have waiting in a lane. A worker holds a few times as
#: many of each, so that the next owner's job is among them.
LANE_SHARE = 2


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted job as it stands.

    `meta` is its stored outcome where the caller waited for it, `retry_after` when it may have
    ended, in whole seconds, as far as can be told. `replayed`: an earlier submission made it.
    `left`: a shared job has ended, and this caller shares it no more.
    """

    record: JobRecord
    meta: bytes | None
    replayed: bool
    left: bool
    retry_after: int


def submit(
    backend: Backend,
    texts: list[str],
    options: JobOptions,
    *,
    owner: str,
    idempotency_key: str | None = None,
    shared: bool = False,
    expires: float | None = None,
    lane: Lane | None = None,
    patience: Patience = NONE,
) -> Submitted:
    """Check a job against the live workers, queue it, and wait for its end as `patience` says.

    With `shared` it joins an equal job of the same owner that has not ended; whoever submits so
    calls `JobStore.leave` in the end, unless it was `left`. Another's success need not be kept
    long once it was waited for. Past `expires`, seconds since the epoch, it does not run.
    `lane` None stands for interactive where the caller waits, else normal; an owner's jobs beyond
    its share of a lane wait in the next one.
    Raises InvalidJob, Problem with `no_worker`, `queue_full`, `results_full`,
    `rate_limit_exceeded`, `quota_exceeded` or `idempotency_conflict`, and redis.RedisError.
    """
    _check_key(idempotency_key)
    workers = backend.liveness.workers()
    if not workers.models:
        backend.metrics.refused("no_worker")
        raise Problem("no_worker", "no worker is there to take jobs", retry_after=WORKER_RETRY)
    model = jobs.resolve(options, workers.models)
    base64 = options.encoding_format == "base64"
    job = NewJob(
        messages.new_id(),
        total=len(texts),
        tokens=estimates.tokens(texts, jobs.most_tokens(options, model)),
        result_bytes=estimates.result_bytes(
            len(texts), options.dimensions or model.dimensions, base64=base64
        ),
        model=model.name,
        owner=owner,
        lane=_lane(patience) if lane is None else lane,
    )
    quotas.spend(backend, job.tokens)
    message = messages.envelope(
        *(job.id, texts, options, backend.settings.queue),
        lane=job.lane,
        owner=owner,
        expires=expires,
    )
    once = Once(
        key=idempotency_key,
        fingerprint=_fingerprint(texts, options) if idempotency_key or shared else "",
        shared=shared,
    )
    with backend.waiting.watch(job.id) as watch:
        acceptance = _accept(backend, job, message, once, LANE_SHARE * model.batch_tokens)
        _check(backend, acceptance, job, workers.tokens_per_second)
        replayed = acceptance.verdict == "replayed"
        if replayed:
            backend.metrics.joined()
            record, meta = _replay(backend, acceptance.job_id, patience)
            left = False
        else:
            backend.metrics.accepted(len(texts))
            logger.info("Job %s accepted", job.id, extra={"job_id": job.id})
            record, meta = await_accepted(
                backend, _record(job), watch, patience, _reader(backend, owner, shared=shared)
            )
            left = shared and record.status.ended
    retry_after = seconds_to_encode(acceptance.level, workers.tokens_per_second)
    return Submitted(record, meta, replayed, left, retry_after)


def _reader(backend: Backend, owner: str, *, shared: bool) -> Read:
    """Reads a job for the one who waits for it, and does in the same step what follows its end."""
    if shared:
        return lambda job_id: backend.store.read_and_leave(job_id, owner)
    return lambda job_id: backend.store.read_and_release(job_id, KEPT_AFTER_ANSWER)


def _lane(patience: Patience) -> Lane:
    return Lane.INTERACTIVE if patience.seconds else Lane.NORMAL


def _accept(
    backend: Backend, job: NewJob, message: bytes, once: Once, lane_share: int
) -> Acceptance:
    """One script where record and message share a server; else the record first."""
    broker = backend.broker
    acceptance = backend.store.accept(
        job,
        message if broker is None else None,
        max_tokens=backend.settings.max_queued_tokens,
        max_result_bytes=backend.result_room.bytes(),
        max_owner_tokens=quotas.queued_tokens_bound(),
        lane_share=lane_share,
        once=once,
    )
    if broker is not None and acceptance.verdict == "accepted":
        try:
            broker.lpush(list_of(backend.settings.queue, acceptance.lane.step), message)
        except redis.RedisError:
            backend.store.withdraw(job.id)
            raise
    return acceptance


def _replay(backend: Backend, job_id: str, patience: Patience) -> tuple[JobRecord, bytes | None]:
    record = await_end(backend, job_id, patience)
    wanted = patience.seconds and record.status.ended
    return record, backend.store.raw_outcome(job_id) if wanted else None


def _record(job: NewJob) -> JobRecord:
    """What can be read of a job right after it was accepted."""
    return JobRecord(
        job.id,
        Status.QUEUED,
        owner=job.owner,
        created_at=job.created,
        model=job.model,
        total=job.total,
    )


def _check(backend: Backend, acceptance: Acceptance, job: NewJob, tokens_per_second: float) -> None:
    if acceptance.verdict in ("accepted", "replayed"):
        return
    if acceptance.verdict == "conflict":
        raise Problem(
            "idempotency_conflict",
            "this Idempotency-Key came with another body before",
            field="Idempotency-Key",
        )
    if acceptance.verdict == "full":
        backend.metrics.refused("queue_full")
        surplus = acceptance.level + job.tokens - backend.settings.max_queued_tokens
        raise Problem(
            "queue_full",
            f"about {acceptance.level:,} tokens wait already",
            retry_after=seconds_to_encode(surplus, tokens_per_second),
        )
    if acceptance.verdict == "owner_full":
        backend.metrics.refused("quota_exceeded")
        bound = quotas.queued_tokens_bound()
        raise Problem(
            "quota_exceeded",
            f"this API key has about {acceptance.level:,} tokens waiting; {bound:,} are allowed",
            retry_after=seconds_to_encode(acceptance.level + job.tokens - bound, tokens_per_second),
        )
    backend.metrics.refused("results_full")
    raise Problem(
        "results_full",
        f"stored results hold about {acceptance.level:,} bytes already",
        retry_after=STORE_RETRY,
    )


def _check_key(key: str | None) -> None:
    if key is not None and not 1 <= len(key) <= LONGEST_IDEMPOTENCY_KEY:
        raise Problem(
            "invalid_request",
            f"Idempotency-Key has {len(key)} characters; 1 to {LONGEST_IDEMPOTENCY_KEY} are "
            "allowed",
            field="Idempotency-Key",
        )


def _fingerprint(texts: list[str], options: JobOptions) -> str:
    """What makes two bodies the same job: the checked values, not their spelling."""
    body = {"input": texts} | options.model_dump()
    return hashlib.sha256(json_body(body)).hexdigest()
