"""Messages on their way to a broker that is a server of its own, kept until it has them.

The script that accepts a job, or lets messages follow it, writes them into the hash `keys.outbox`.
So a process that dies before the broker has a message loses none: a worker sends what stays there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import redis

from worker.contract import keys
from worker.store import server

logger = logging.getLogger(__name__)

#: Seconds after which a worker sends a message: the process that put it there died.
_RESEND_AFTER = 5.0
#: Entries looked at in one step.
_PAGE = 100


class Outbox:
    """The outbox of one queue. Safe to share between threads; raises redis.RedisError."""

    def __init__(self, client: redis.Redis, broker: redis.Redis, queue: str) -> None:
        self._client = client
        self._broker = broker
        self.key = keys.outbox(queue)

    def send(self, name: str, list_name: str, message: bytes) -> None:
        """Have the broker take the message of an entry, which goes then."""
        self._broker.lpush(list_name, message)
        try:
            self._client.hdel(self.key, name)
        except redis.RedisError as error:
            # It is sent a second time, and only the first outcome of a job counts.
            logger.warning("The outbox keeps message %s: %s", name, server.reason(error))

    def send_entry(self, name: str, entry: bytes) -> None:
        """The same for an entry as it is in the hash."""
        _, list_name, message = entry.split(b"\n", 2)
        self.send(name, list_name.decode(), message)

    def send_overdue(self) -> None:
        """Send what is there for longer than its process can need, some entries at a time."""
        seconds, _ = self._client.time()
        _, entries = cast(
            "tuple[int, dict[bytes, bytes]]", self._client.hscan(self.key, count=_PAGE)
        )
        for name, entry in entries.items():
            if float(entry.partition(b"\n")[0]) < seconds - _RESEND_AFTER:
                self.send_entry(name.decode(), entry)

    def without(self, names: Sequence[str]) -> list[str]:
        """Those of some names that have no entry."""
        if not names:
            return []
        entries = self._client.hmget(self.key, list(names))
        return [name for name, entry in zip(names, entries, strict=True) if entry is None]


def entry_of(time: float, list_name: str, message: bytes) -> bytes:
    """An entry as scripts write it: its time by Redis' clock, the list, and the message."""
    return f"{time:.6f}\n{list_name}\n".encode() + message
