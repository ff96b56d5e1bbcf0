"""Put expired messages of stock workers back, by kombu's routing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

import redis
from kombu.transport import redis as stock
from kombu.utils.json import dumps, loads

from worker.transport import scripts
from worker.transport.command import Command
from worker.transport.lease_store import LeaseStore
from worker.transport.leases import DeadLetterUpdate, LeaseUpdates
from worker.transport.renewal import log_refusal

logger = logging.getLogger(__name__)


def restore(channel: stock.Channel, store: LeaseStore, tags: Sequence[str]) -> None:
    """Put messages back; one that cannot be read becomes a dead letter."""
    try:
        for tag, entry in zip(tags, store.client.hmget(store.unacked_key, list(tags)), strict=True):
            refusal = store.run(_command(channel, store, tag, entry))
            if refusal is not None:
                log_refusal(refusal.decode())
    except redis.RedisError as error:
        logger.warning("Could not restore messages of stock workers: %s", error)


def _command(
    channel: stock.Channel, store: LeaseStore, tag: str, entry: bytes | str | None
) -> Command:
    """The call that puts an entry back or makes it a dead letter. None: it ended meanwhile."""
    lists: list[str] = []
    text = ""
    try:
        if entry is not None:
            message, exchange, routing_key = loads(entry)
            with suppress(KeyError):
                message["headers"]["redelivered"] = True
                message["properties"]["delivery_info"]["redelivered"] = True
            text = dumps(message)
            priority = channel._get_message_priority(message, reverse=False)  # noqa: SLF001
            lists = [
                store.key_prefix + channel._q_for_pri(queue, priority)  # noqa: SLF001
                for queue in channel._lookup(exchange, routing_key)  # noqa: SLF001
            ]
    except redis.RedisError:
        raise
    except Exception as error:  # noqa: BLE001 - it would raise the same in every worker
        logger.warning("An unreadable message is a dead letter now: %s", type(error).__name__)
        dead_letter = DeadLetterUpdate(tag, "unreadable", store.dead_letter_key)
        [(command, _)] = store.commands(LeaseUpdates(dead_letters=[dead_letter]))
        return command
    return Command(scripts.RESTORE_STOCK, (store.unacked_key, store.index_key, *lists), (tag, text))
