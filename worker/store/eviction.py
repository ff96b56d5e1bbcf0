"""A warning at start if Redis may evict keys: accepted jobs and results would be lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import redis

logger = logging.getLogger(__name__)


class EvictionCheck:
    """Looks once at the servers' `maxmemory-policy`, on a thread of its own."""

    def __init__(self, clients: Iterable[redis.Redis]) -> None:
        self._clients = set(clients)
        self._begun = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="embedq-eviction", daemon=True)

    def start(self) -> None:
        """Look, unless another call has begun to."""
        if self._begun:
            return
        with self._lock:
            begun, self._begun = self._begun, True
        if not begun:
            self._thread.start()

    def close(self) -> None:
        """Wait for a look that has begun; the clients may be closed then."""
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        for client in self._clients:
            policy = eviction_policy(client)
            if policy not in ("", "noeviction"):
                logger.warning(
                    "Redis evicts keys when its memory is full (maxmemory-policy %s), so accepted "
                    "jobs and results can be lost: set maxmemory-policy to noeviction",
                    policy,
                )


def eviction_policy(client: redis.Redis) -> str:
    """The server's `maxmemory-policy`; "" if it does not tell."""
    # Managed servers and restricted users may have one command, or neither.
    ways: tuple[tuple[Callable[[str], Any], str, str], ...] = (
        (client.info, "memory", "maxmemory_policy"),
        (client.config_get, "maxmemory-policy", "maxmemory-policy"),
    )
    for ask, about, name in ways:
        try:
            policy = str(ask(about).get(name, ""))
        except redis.RedisError as error:
            logger.debug("The server does not tell its memory policy: %s", type(error).__name__)
        else:
            if policy:
                return policy
    return ""
