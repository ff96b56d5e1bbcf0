"""Messages on their way to the broker, which may be a separate server.

If one server has messages and results, the script that accepts or completes a job queues its
messages in the same step. Otherwise it writes them into the hash `keys.outbox` until the broker has
them. If the process dies before it has sent them, a worker does, so that no message is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import redis

from worker.contract import keys
from worker.store import server

logger = logging.getLogger(__name__)

#: Seconds after which a worker sends a message: the process that wrote it has died.
_RESEND_AFTER = 5.0
#: Entries checked in one step.
_PAGE = 100

#: A list of the broker, and a message for it.
Addressed = tuple[str, bytes]


class MessageOutbox:
    """The outbox of one queue. Safe to share between threads; raises redis.RedisError."""

    def __init__(self, client: redis.Redis, broker: redis.Redis, queue: str) -> None:
        """`broker`: the server of the messages, which may be `client` itself."""
        self._client = client
        self._broker = broker
        #: Name of the hash; "" if there is none, since messages are queued at once.
        self.key = "" if broker is client else keys.outbox(queue)

    def put(self, pipe: Any, name: str, time: float, addressed: Addressed) -> None:
        """Queue a message, or put it into the hash, by a command of `pipe`; then `send` it."""
        list_name, message = addressed
        if self.key:
            pipe.hset(self.key, name, f"{time:.6f}\n{list_name}\n".encode() + message)
        else:
            pipe.lpush(list_name, message)

    def send(self, entries: Mapping[str, Addressed]) -> None:
        """Send the messages of entries, by name, to the broker, and remove the entries."""
        if not self.key or not entries:
            return
        with self._broker.pipeline() as pipe:
            for addressed in entries.values():
                pipe.lpush(*addressed)
            pipe.execute()
        try:
            self._client.hdel(self.key, *entries)
        except redis.RedisError as error:
            # They are sent again; only the first outcome of a job counts.
            logger.warning("The outbox keeps %d messages: %s", len(entries), server.reason(error))

    def send_entry(self, name: str, entry: bytes) -> None:
        """Send one entry, in the format of the hash."""
        _, list_name, message = entry.split(b"\n", 2)
        self.send({name: (list_name.decode(), message)})

    def send_overdue(self) -> None:
        """Send a page of entries, as far as they are older than any process needs to send them."""
        if not self.key:
            return
        seconds, _ = self._client.time()
        _, entries = cast(
            "tuple[int, dict[bytes, bytes]]", self._client.hscan(self.key, count=_PAGE)
        )
        for name, entry in entries.items():
            if float(entry.partition(b"\n")[0]) < seconds - _RESEND_AFTER:
                self.send_entry(name.decode(), entry)

    def without(self, names: Sequence[str]) -> list[str]:
        """Return the names that have no entry."""
        if not self.key or not names:
            return list(names)
        entries = self._client.hmget(self.key, list(names))
        return [name for name, entry in zip(names, entries, strict=True) if entry is None]
