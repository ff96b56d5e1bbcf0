"""Renew leases while the worker stops and the event loop no longer runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from worker.transport import leases

logger = logging.getLogger(__name__)


@contextmanager
def leases_renewed(lease_seconds: float) -> Iterator[None]:
    """Renew all leases every third of their time, on a thread of its own, until the block ends."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease_seconds / 3):
            try:
                leases.renew()
            except redis.RedisError as error:
                logger.warning("Leases were not renewed: %s", type(error).__name__)

    threading.Thread(target=renew, name="embedq-renewal", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
