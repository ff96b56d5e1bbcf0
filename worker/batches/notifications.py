"""Notices of completed jobs, which workers publish."""

from __future__ import annotations

import time
from typing import NamedTuple

import orjson
import redis
from redis.client import PubSub

from worker.contract import keys


class Notification(NamedTuple):
    """Received notices: jobs that ended, batches that changed; `missed`: some may be lost."""

    ended: set[str]
    batches: set[str]
    missed: bool


class Notifications:
    """A subscription of its own, for the thread that made it; `close` ends it."""

    def __init__(self, client: redis.Redis) -> None:
        """Subscribe to all notices from now on. Raises redis.RedisError."""
        self._pubsub: PubSub = client.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(keys.EVENTS)

    def wait(self, seconds: float) -> Notification:
        """Wait for a notice and return all received ones. Raises redis.RedisError."""
        news = Notification(set(), set(), missed=False)
        deadline = time.monotonic() + seconds
        message = self._pubsub.get_message(timeout=seconds)
        while message is not None:
            if message["type"] == "subscribe":
                # The connection is new: notices published before it are lost.
                news = news._replace(missed=True)
            elif message["type"] == "message":
                _add(news, message["data"])
            heard = any(news)
            left = 0.0 if heard else max(deadline - time.monotonic(), 0.0)
            message = self._pubsub.get_message(timeout=left)
        return news

    def close(self) -> None:
        self._pubsub.close()


def _add(news: Notification, data: bytes) -> None:
    try:
        notice = orjson.loads(data)
        news.ended.update(map(str, notice.get("ended", ())))
        news.batches.update(map(str, notice.get("batches", ())))
    except (ValueError, TypeError, AttributeError):
        # A notice of another version; the next check of all jobs compensates for it.
        return
