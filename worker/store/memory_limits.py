"""Limits on the bytes of waiting messages and stored results."""

from __future__ import annotations

import time

import redis

from worker.contract.settings import Settings

#: Parts of the server's memory that results and waiting messages may hold; the rest is for leases
#: and copies.
_RESULTS_SHARE = 0.5
_MESSAGES_SHARE = 0.25
#: Bytes of waiting messages if neither the setting nor the server has a limit.
_USUAL_MESSAGES = 2**30
#: Part of the queue's bytes that one owner may hold, unless its key has its own limit: the rest is
#: for others.
_OWNER_SHARE = 0.5
#: Seconds that the server's own limit is remembered.
_FRESH = 60.0


class MemoryLimits:
    """Bytes that a queue may hold on its server. Safe to share between threads.

    Messages and results count against the memory of the results' server. It also has the messages,
    unless they have their own server.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._client = client
        self._results = settings.max_result_bytes
        self._messages = settings.max_queued_bytes
        self._memory = 0
        self._stale_at = 0.0

    def results(self) -> int:
        """Bytes of stored results: the setting, or a share of `maxmemory`; 0: unlimited.

        Raises redis.RedisError.
        """
        if self._results is not None:
            return self._results
        return int(self._max_memory() * _RESULTS_SHARE)

    def messages(self) -> int:
        """Bytes of waiting messages: the setting, or a share of `maxmemory`; always limited."""
        if self._messages is not None:
            return self._messages
        return int(self._max_memory() * _MESSAGES_SHARE) or _USUAL_MESSAGES

    def messages_of(self, limit: int) -> int:
        """Bytes of waiting messages of one owner; `limit` is its own limit, 0: not set."""
        most = self.messages()
        return min(limit, most) if limit else int(most * _OWNER_SHARE)

    def _max_memory(self) -> int:
        if time.monotonic() >= self._stale_at:
            try:
                self._memory = int(self._client.info("memory").get("maxmemory", 0))
            except redis.ResponseError:
                # A managed server may not allow INFO; the settings replace it.
                self._memory = 0
            self._stale_at = time.monotonic() + _FRESH
        return self._memory
