"""A warning at start if Redis may evict keys: accepted jobs and results would be lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import redis

logger = logging.getLogger(__name__)


class EvictionCheck:
    """Checks the servers' `maxmemory-policy` once, on its own thread."""

    def __init__(self, clients: Iterable[redis.Redis]) -> None:
        self._clients = set(clients)
        self._begun = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="embedq-eviction", daemon=True)

    def start(self) -> None:
        """Start the check, unless an earlier call has started it."""
        if self._begun:
            return
        with self._lock:
            begun, self._begun = self._begun, True
        if not begun:
            self._thread.start()

    def close(self) -> None:
        """Wait for a running check; then the clients may be closed."""
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
    """The server's `maxmemory-policy`; "" if it is not available."""
    # Managed servers and restricted users may lack one command, or both.
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
