"""Acknowledge deliveries: leases through `leases`, others as kombu does."""

from __future__ import annotations

import logging
from typing import Any

import redis
from kombu.transport import redis as stock

from worker.transport import scripts

logger = logging.getLogger(__name__)


class QoS(stock.QoS):
    """kombu's interface for prefetching, acknowledging and restoring, one for each channel."""

    def can_consume(self) -> bool:
        return bool(self.channel.has_room())

    def ack(self, delivery_tag: str) -> None:
        if is_lease(delivery_tag):
            self.channel.leases.ack(delivery_tag)
            self.channel.flush()
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if is_lease(delivery_tag):
            self.channel.leases.nack(delivery_tag, requeue=requeue)
            self.channel.flush()
        else:
            super().reject(delivery_tag, requeue=requeue)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """The fetcher does it, in one script and without a mutex."""

    def restore_unacked(self, client: Any = None) -> None:
        super().restore_unacked(client)
        self._release_leases()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        super().restore_unacked_once(stderr)
        self._release_leases()

    def delivered(self) -> int:
        """The number of unacknowledged messages that kombu itself delivered."""
        return len(self._delivered) - len(self._dirty)

    def _release_leases(self) -> None:
        self.channel.leases.release_owned(self.channel.owner)
        try:
            self.channel.leases.flush()
        except redis.RedisError as error:
            # They stay in the updates for the next connection, or expire.
            logger.info("Could not give leases back while closing: %s", error)


def is_lease(tag: str) -> bool:
    """Whether one of our fetches gave out this tag."""
    return tag.startswith(scripts.LEASE + ":")
