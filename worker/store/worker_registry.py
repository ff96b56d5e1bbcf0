"""The live workers, their models and their speed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import orjson
import redis

from worker.contract import keys
from worker.contract.models import ModelInfo

logger = logging.getLogger(__name__)

#: Seconds without progress after which a worker no longer counts.
SILENCE = 30.0
#: Seconds that a read result is reused.
_FRESH = 1.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The live workers of a queue at one moment."""

    count: int = 0
    #: The models that they serve, the default model first.
    models: Mapping[str, ModelInfo] = field(default_factory=dict)
    tokens_per_second: float = 0.0


class WorkerRegistry:
    """Reads the workers' heartbeats, at most once a second. Safe to share between threads.

    While one thread reads, the others use the previous result.
    """

    def __init__(self, client: redis.Redis, queue: str) -> None:
        self._client = client
        self._key = keys.workers(queue)
        self._workers: Workers | None = None
        self._stale_at = 0.0

    def workers(self) -> Workers:
        """The live workers, at most a second old. Raises redis.RedisError."""
        now = time.monotonic()
        if self._workers is not None and now < self._stale_at:
            return self._workers
        self._stale_at = now + _FRESH
        try:
            self._workers = self.read()
        except redis.RedisError:
            self._workers = None
            raise
        return self._workers

    def read(self, client: redis.Redis | None = None) -> Workers:
        """The live workers as of now. Raises redis.RedisError."""
        return live_workers(*self.heartbeats(client))

    def heartbeats(self, client: redis.Redis | None = None) -> tuple[Mapping[bytes, bytes], float]:
        """The heartbeats of all workers, JSON by node name, and Redis' time.

        Silent workers are included. Raises redis.RedisError.
        """
        with (client or self._client).pipeline(transaction=False) as pipe:
            pipe.hgetall(self._key)
            pipe.time()
            found, (seconds, micros) = pipe.execute()
        return cast("dict[bytes, bytes]", found), seconds + micros / 1e6


def live_workers(presences: Mapping[bytes, bytes], now: float) -> Workers:
    """The live workers, from JSON by node name; `now` in seconds since the epoch. Pure."""
    count, rate = 0, 0.0
    models: dict[str, ModelInfo] = {}
    for node, raw in sorted(presences.items()):
        try:
            presence = orjson.loads(raw)
            served = [_model_info(values) for values in presence["models"]]
            lives = now - presence["at"] <= SILENCE
            speed = float(presence["tokens_per_second"] or 0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # A worker of another version must not make the API fail.
            reason = type(error).__name__
            logger.warning("The heartbeat of worker %r is not understood: %s", node, reason)
            continue
        if lives:
            count += 1
            rate += speed
            for model in served:
                models.setdefault(model.name, model)
    return Workers(count, models, rate)


def _model_info(values: Mapping[str, Any]) -> ModelInfo:
    # A newer worker may send fields that this API does not have.
    known = {one.name: values[one.name] for one in fields(ModelInfo) if one.name in values}
    return ModelInfo(**known | {"matryoshka": tuple(known.get("matryoshka", ()))})
