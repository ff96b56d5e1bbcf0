"""From a request body to an accepted job, or to the reason why not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import redis

from api.backend import Backend
from api.errors import Problem
from api.limits import STORE_RETRY, WORKER_RETRY, seconds_to_encode
from worker.contract import estimates, jobs, messages
from worker.contract.jobs import JobOptions
from worker.contract.store import Acceptance, NewJob

LONGEST_IDEMPOTENCY_KEY = 255


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that will end. `retry_after` is when, in whole seconds, as far as can be told."""

    id: str
    replayed: bool
    retry_after: int


def submit(
    backend: Backend, body: object, *, owner: str, idempotency_key: str | None = None
) -> Accepted:
    """Check a request against the live workers and queue it.

    Raises InvalidJob, Problem with `no_worker`, `queue_full`, `results_full` or
    `idempotency_conflict`, and redis.RedisError.
    """
    texts, options = jobs.parse_body(body)
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
        tokens=estimates.tokens(texts, model.max_tokens),
        result_bytes=estimates.result_bytes(
            len(texts), options.dimensions or model.dimensions, base64=base64
        ),
        model=model.name,
        owner=owner,
    )
    message = messages.envelope(job.id, texts, options, backend.settings.queue)
    fingerprint = _fingerprint(texts, options) if idempotency_key else ""
    acceptance = _accept(backend, job, message, idempotency_key, fingerprint)
    _check(backend, acceptance, job, workers.tokens_per_second)
    replayed = acceptance.verdict == "replayed"
    if not replayed:
        backend.metrics.accepted(len(texts))
    return Accepted(
        acceptance.job_id,
        replayed,
        seconds_to_encode(acceptance.level, workers.tokens_per_second),
    )


def _accept(
    backend: Backend, job: NewJob, message: bytes, idempotency_key: str | None, fingerprint: str
) -> Acceptance:
    """One script where record and message share a server; else the record first."""
    broker = backend.broker
    acceptance = backend.store.accept(
        job,
        message if broker is None else None,
        max_tokens=backend.settings.max_queued_tokens,
        max_result_bytes=backend.result_room.bytes(),
        idempotency_key=idempotency_key,
        fingerprint=fingerprint,
    )
    if broker is not None and acceptance.verdict == "accepted":
        try:
            broker.lpush(backend.settings.queue, message)
        except redis.RedisError:
            backend.store.withdraw(job.id)
            raise
    return acceptance


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
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()
