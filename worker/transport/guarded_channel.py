"""Guard kombu's own reading of messages against unreadable ones.

kombu reads broadcasts and messages without acknowledgement. There an unreadable message ends the
event loop, or counts as a lost connection: kombu treats KeyError as one.
"""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as stock

logger = logging.getLogger(__name__)

#: Raised by redis-py if a connection is lost or the server refuses.
_OF_THE_SERVER = (redis.RedisError, OSError)


class GuardedChannel(stock.Channel):
    """A channel that survives unreadable messages."""

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
