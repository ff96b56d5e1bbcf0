"""From texts and options to an accepted job, or to the reason for its rejection."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace

from api import auth, quotas
from api.backend import Backend
from api.errors import STORE_RETRY, WORKER_RETRY, Problem, seconds_to_encode
from api.responses import json_body
from api.wait_options import NO_WAIT, Read, Timeout, await_accepted, await_end
from worker.contract import jobs
from worker.contract.estimates import USUAL_MODEL
from worker.contract.jobs import JobOptions, Status
from worker.contract.lanes import Lane
from worker.contract.models import ModelInfo
from worker.store.api_keys import ApiKey
from worker.store.jobs import Acceptance, Deduplication, JobRecord, JobRequest, QueueCapacity
from worker.store.worker_registry import Workers

logger = logging.getLogger(__name__)

LONGEST_IDEMPOTENCY_KEY = 255
#: Seconds that a job stays readable after its caller has waited for it: the answer may get lost.
KEPT_AFTER_ANSWER = 60
#: Batches' worth of tokens that one owner may have waiting in a lane. A worker holds a few times as
#: many of each, so that the next owner's job is among them.
LANE_SHARE = 3


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted job as it stands.

    `meta` is its stored outcome if the caller waited for it, `retry_after` the estimated whole
    seconds until its end. `replayed`: an earlier submission made it. `caller` names this caller of
    a shared job; `left`: the job has ended, and this caller has left it.
    """

    record: JobRecord
    meta: bytes | None
    replayed: bool
    caller: str
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
    deadline: float | None = None,
    lane: Lane | None = None,
    timeout: Timeout = NO_WAIT,
) -> Submission:
    """Check a job against the live workers, queue it, and wait for its end until `timeout`.

    With `shared` it joins an equal job of the same owner that has not ended; its caller calls
    `JobStore.leave` in the end, unless it was `left`. The success of a job that is not shared is
    kept briefly after the wait. Past `deadline`, seconds since the epoch by Redis' clock, the job
    does not start. `lane` None is interactive if the caller waits, else normal; an owner's jobs
    beyond its share of a lane wait in the next one.
    Raises InvalidJob, Problem with `no_worker`, `queue_full`, `results_full`,
    `rate_limit_exceeded`, `quota_exceeded` or `idempotency_conflict`, and redis.RedisError.
    """
    _check_key(idempotency_key)
    workers = backend.liveness.workers()
    model = _model(backend, options, workers)
    job = JobRequest.of(
        texts,
        options,
        model,
        queue=backend.settings.queue,
        owner=owner,
        lane=_lane(timeout) if lane is None else lane,
        deadline=deadline,
    )
    key = auth.key()
    quotas.spend(backend, key, job.tokens)
    deduplicate = Deduplication(
        key=idempotency_key,
        fingerprint=_fingerprint(texts, options) if idempotency_key or shared else "",
        shared=shared,
    )
    capacity = _capacity(backend, key, LANE_SHARE * model.batch_tokens)
    with backend.waiting.watch(job.id) as watch:
        acceptance = backend.store.submit(job, capacity, deduplicate=deduplicate)
        if acceptance.verdict not in ("accepted", "replayed"):
            raise _rejection(backend, acceptance, job, capacity, workers.tokens_per_second)
        retry_after = seconds_to_encode(acceptance.level, workers.tokens_per_second)
        if acceptance.verdict == "replayed":
            return _replayed(backend, acceptance, job.call, timeout, retry_after)
        backend.metrics.accepted(len(texts))
        logger.info("Job %s accepted", job.id, extra={"job_id": job.id})
        record, meta = await_accepted(
            *(backend, _record(job, acceptance), watch, timeout),
            _reader(backend, job, shared=shared),
        )
    left = shared and record.status.ended
    return Submission(record, meta, False, job.call, left, retry_after)


def _replayed(
    backend: Backend, acceptance: Acceptance, call: str, timeout: Timeout, retry_after: int
) -> Submission:
    """The earlier, equal job, when it has ended or the wait is over."""
    backend.metrics.joined()
    record = await_end(backend, acceptance.job_id, timeout)
    is_read = timeout.seconds and record.status.ended
    meta = backend.store.raw_outcome(acceptance.job_id) if is_read else None
    return Submission(record, meta, True, call, False, retry_after)


def _model(backend: Backend, options: JobOptions, workers: Workers) -> ModelInfo:
    """The model that a job asks for, its options checked against it.

    Without a live worker, if jobs are accepted then: a model of usual sizes. The worker that runs
    the job checks its options.
    """
    if workers.models:
        return jobs.resolve(options, workers.models)
    if not backend.settings.accept_without_workers:
        backend.metrics.refused("no_worker")
        raise Problem("no_worker", "no worker is there to take jobs", retry_after=WORKER_RETRY)
    return replace(USUAL_MODEL, name=options.model or "")


def _reader(backend: Backend, job: JobRequest, *, shared: bool) -> Read:
    """A function that reads a job for its waiting caller, and releases or leaves an ended one."""
    if shared:
        return lambda job_id: backend.store.read_and_leave(job_id, job.owner, job.call)
    return lambda job_id: backend.store.read_and_release(job_id, KEPT_AFTER_ANSWER)


def _lane(timeout: Timeout) -> Lane:
    return Lane.INTERACTIVE if timeout.seconds else Lane.NORMAL


def _capacity(backend: Backend, key: ApiKey | None, lane_share: int) -> QueueCapacity:
    room = backend.room
    return QueueCapacity(
        tokens=backend.settings.max_queued_tokens,
        bytes=room.messages(),
        owner_tokens=(key.max_queued_tokens or 0) if key is not None else 0,
        owner_bytes=room.messages_of((key.max_queued_mb or 0) * 2**20) if key is not None else 0,
        result_bytes=room.results(),
        lane_share=lane_share,
    )


def _record(job: JobRequest, acceptance: Acceptance) -> JobRecord:
    """The record of a job that was just accepted."""
    return JobRecord(
        job.id,
        Status.QUEUED,
        owner=job.owner,
        created_at=acceptance.created_at,
        model=job.model,
        total=job.total,
    )


def _rejection(
    backend: Backend,
    acceptance: Acceptance,
    job: JobRequest,
    capacity: QueueCapacity,
    tokens_per_second: float,
) -> Problem:
    """The Problem of a rejected job."""
    verdict, level = acceptance.verdict, acceptance.level
    if verdict == "conflict":
        return Problem(
            "idempotency_conflict",
            "this Idempotency-Key came with another body before",
            field="Idempotency-Key",
        )
    code, reason, surplus = {
        "full": (
            "queue_full",
            f"about {level:,} tokens wait already",
            level + job.tokens - capacity.tokens,
        ),
        "bytes_full": (
            "queue_full",
            f"{level:,} bytes of messages wait already; {capacity.bytes:,} are allowed",
            None,
        ),
        "owner_full": (
            "quota_exceeded",
            f"this API key has about {level:,} tokens waiting; {capacity.owner_tokens:,} are "
            "allowed",
            level + job.tokens - capacity.owner_tokens,
        ),
        "owner_bytes_full": (
            "quota_exceeded",
            f"this API key has {level:,} bytes waiting; {capacity.owner_bytes:,} are allowed",
            None,
        ),
        "results_full": (
            "results_full",
            f"stored results hold about {level:,} bytes already",
            None,
        ),
    }[verdict]
    backend.metrics.refused(code)
    retry = STORE_RETRY if surplus is None else seconds_to_encode(surplus, tokens_per_second)
    return Problem(code, reason, retry_after=retry)


def _check_key(key: str | None) -> None:
    if key is not None and not 1 <= len(key) <= LONGEST_IDEMPOTENCY_KEY:
        raise Problem(
            "invalid_request",
            f"Idempotency-Key has {len(key)} characters; 1 to {LONGEST_IDEMPOTENCY_KEY} are "
            "allowed",
            field="Idempotency-Key",
        )


def _fingerprint(texts: list[str], options: JobOptions) -> str:
    """A digest that is equal for equal jobs: of the checked values, not of their spelling."""
    body = {"input": texts} | options.model_dump()
    return hashlib.sha256(json_body(body)).hexdigest()
