"""How many bytes stored results may hold."""

from __future__ import annotations

import time

import redis

from worker.contract.settings import Settings

#: Part of the server's memory that results may hold; the rest is for jobs, leases and copies.
_SHARE_OF_MEMORY = 0.5
#: Seconds that the server's own limit is remembered.
_FRESH = 60.0


class ResultRoom:
    """Bytes that stored results may hold; 0: no bound. Safe to share between threads."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._client = client
        self._setting = settings.max_result_bytes
        self._from_server = 0
        self._stale_at = 0.0

    def bytes(self) -> int:
        """The setting, or a share of the server's `maxmemory`. Raises redis.RedisError."""
        if self._setting is not None:
            return self._setting
        if time.monotonic() >= self._stale_at:
            self._from_server = int(self._max_memory() * _SHARE_OF_MEMORY)
            self._stale_at = time.monotonic() + _FRESH
        return self._from_server

    def _max_memory(self) -> int:
        try:
            return int(self._client.info("memory").get("maxmemory", 0))
        except redis.ResponseError:
            # A managed server may keep INFO to itself; the setting is there for it.
            return 0
