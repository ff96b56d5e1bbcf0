"""kombu's own ways to read messages, made safe against those that cannot be read.

Broadcasts, messages without acknowledgement and the restoring of stock workers' messages are
kombu's. There an unreadable message ends the event loop, is taken for a lost connection (kombu
counts KeyError as one), or vanishes.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as stock
from kombu.utils.json import dumps

logger = logging.getLogger(__name__)

#: What redis-py raises where a connection is gone or the server refuses.
_OF_THE_SERVER = (redis.RedisError, OSError)


class GuardedChannel(stock.Channel):
    """A channel that outlives every message."""

    def _receive_one(self, c: Any) -> Any:
        """Receive one broadcast."""
        try:
            return super()._receive_one(c)
        except _OF_THE_SERVER:
            raise
        except Empty:
            # kombu has logged that it is not JSON. More may follow in the same packet.
            return None
        except Exception:
            logger.exception("Dropped a broadcast message that cannot be read")
            return None

    def _brpop_read(self, **options: Any) -> Any:
        """Receive one message of a consumer that does not acknowledge: kombu has removed it."""
        try:
            return super()._brpop_read(**options)
        except (*_OF_THE_SERVER, Empty):
            raise
        except Exception as error:
            logger.exception("Dropped a message that cannot be read")
            raise Empty from error

    def _do_restore_message(
        self, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        """Restore a message of a stock worker; raise where kombu's would log and remove it."""
        with suppress(KeyError):
            payload["headers"]["redelivered"] = True
            payload["properties"]["delivery_info"]["redelivered"] = True
        push = pipe.lpush if leftmost else pipe.rpush
        priority = self._get_message_priority(payload, reverse=False)
        for queue in self._lookup(exchange, routing_key):
            push(self._q_for_pri(queue, priority), dumps(payload))
