"""Rates of an API key: charged before a job is accepted, and stated in every such response."""

from __future__ import annotations

import math

from werkzeug.datastructures import Headers

from api import auth
from api.backend import Backend
from api.errors import Problem
from api.requests import current_g
from worker.store.api_keys import ApiKey
from worker.store.quotas import WINDOW, Bucket, QuotaGrant


def spend(backend: Backend, key: ApiKey | None, tokens: int) -> None:
    """Take one request and so many tokens of a key's minute.

    Raises Problem with `rate_limit_exceeded`, and redis.RedisError.
    """
    if key is not None:
        _take(backend, key.id, tokens, key.requests_per_minute, key.tokens_per_minute)


def spend_listing(backend: Backend) -> None:
    """Take one request of the caller's minute for lists, as long as that for submissions.

    Raises as `spend`.
    """
    key = auth.key()
    if key is not None:
        _take(backend, f"{key.id}:lists", 0, key.requests_per_minute, None)


def _take(
    backend: Backend, owner: str, tokens: int, requests_limit: int | None, tokens_limit: int | None
) -> None:
    if not (requests_limit or tokens_limit):
        return
    taken = backend.quotas.take(
        owner, tokens, requests_limit=requests_limit, tokens_limit=tokens_limit
    )
    current_g().taken = taken
    if not taken.granted:
        backend.metrics.refused("rate_limit_exceeded")
        limits = [f"{bucket.limit:,} {name} a minute" for name, bucket in _buckets(taken) if bucket]
        raise Problem(
            "rate_limit_exceeded",
            f"this API key has {' and '.join(limits)}",
            retry_after=max(1, math.ceil(taken.retry_after)),
        )


def add_headers(headers: Headers, taken: QuotaGrant) -> None:
    """Add the remaining rates to a response, in OpenAI's headers and in the IETF draft's.

    draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` and `RateLimit`.
    """
    policies, states = [], []
    for name, bucket in _buckets(taken):
        if bucket is None:
            continue
        headers[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(bucket.left)
        headers[f"x-ratelimit-reset-{name}"] = f"{bucket.reset:.3f}s"
        policies.append(f'"{name}";q={bucket.limit};w={WINDOW}')
        states.append(f'"{name}";r={bucket.left};t={math.ceil(bucket.reset)}')
    headers["RateLimit-Policy"] = ", ".join(policies)
    headers["RateLimit"] = ", ".join(states)


def _buckets(taken: QuotaGrant) -> list[tuple[str, Bucket | None]]:
    return [("requests", taken.requests), ("tokens", taken.tokens)]
