"""Limits per minute of API keys: two token buckets per key in Redis, exact across processes.

A bucket (https://en.wikipedia.org/wiki/Token_bucket) holds a minute's allowance and fills evenly.
One script takes from both or from neither, by the server's clock. A job is charged its estimated
tokens at submission. The script that completes it (`lua/complete.lua`) corrects the charge to the
tokens that the model read.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import redis

from worker.contract import keys
from worker.store.scripts import TAKE
from worker.store.submissions import new_call

#: Seconds in which an empty bucket fills.
WINDOW = 60


class Bucket(NamedTuple):
    """One allowance: `limit` a minute, `left` of it, `reset` seconds until it is full again."""

    limit: int
    left: int
    reset: float


class QuotaGrant(NamedTuple):
    """Whether a request was granted, the buckets and, if refused, seconds until it would be."""

    granted: bool
    requests: Bucket | None
    tokens: Bucket | None
    retry_after: float


class Quotas:
    """The buckets of all keys of a deployment. Safe to share between threads."""

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._queue = queue
        self._script = client.register_script(TAKE)

    def take(
        self, owner: str, tokens: int, *, requests_limit: int | None, tokens_limit: int | None
    ) -> QuotaGrant:
        """Take one request and `tokens` from an owner's buckets. Raises redis.RedisError."""
        answer = self._script(
            keys=[keys.quota(self._queue, owner), keys.call(self._queue, new_call())],
            args=[requests_limit or 0, tokens_limit or 0, tokens, WINDOW * 1000],
        )
        granted, r_left, r_reset, t_left, t_reset, wait = cast("list[int]", answer)
        return QuotaGrant(
            bool(granted),
            Bucket(requests_limit, r_left, r_reset / 1000) if requests_limit else None,
            Bucket(tokens_limit, t_left, t_reset / 1000) if tokens_limit else None,
            wait / 1000,
        )
