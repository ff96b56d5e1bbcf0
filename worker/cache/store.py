"""The entries of the cache in Redis: many in one round trip, with bounds on memory and waiting.

Each queue has two Redis keys: a hash of entries by their key, and a sorted set of the same keys by
last use. The hash also holds the bytes that both take, so that the count is removed with it. The
least recently used entries are evicted. When the cache is turned off, its keys expire.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.cache.entries import Keys
from worker.cache.revision import revision
from worker.contract import keys
from worker.contract.backoff import Backoff
from worker.contract.errors import ModelUnavailable
from worker.contract.models import ModelInfo, ModelSpec
from worker.contract.settings import Settings
from worker.store import server
from worker.store.scripts import CACHE

logger = logging.getLogger(__name__)

#: Timeouts in seconds of each answer to a look-up, and of storing entries.
_LOOKUP_SECONDS, _KEEPING_SECONDS = 0.05, 2.0
#: Seconds without look-ups after a failed one, doubled with each further failure.
_BACKOFF = Backoff(1.0, 30.0)
#: Keys of one command, bytes of one script, and entries that one removes: Redis serves no other
#: client meanwhile.
_KEYS_A_COMMAND = 512
_BYTES_A_SCRIPT = 256 * 1024
_MOST_REMOVED = 2048
#: Seconds after which an unused cache expires.
_FORGOTTEN_AFTER = 7 * 24 * 3600


def open_cache(settings: Settings, infos: Mapping[str, ModelInfo]) -> Cache | None:
    """The cache for loaded models, on the results' server; None if the settings disable it.

    A model with unreadable files is served without it.
    """
    if not settings.cache_bytes:
        return None
    revisions = {}
    for spec in settings.models:
        if (found := _revision(spec, infos[spec.name])) is not None:
            revisions[spec.name] = found

    def client(seconds: float) -> redis.Redis:
        return server.connect(
            settings.result_backend,
            sentinel_master=settings.sentinel_master,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            # A check would cost a round trip.
            health_check_interval=0,
            # One retry, for idle connections that were closed; none after a timeout.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )

    return Cache(
        Keys(revisions),
        client(_LOOKUP_SECONDS),
        client(_KEEPING_SECONDS),
        queue=settings.queue,
        bound=settings.cache_bytes,
    )


class Cache:
    """Entries of texts by `keys`. No method raises errors of Redis.

    One thread calls `find`, another calls `keep`. Each method has its own client and timeouts.
    """

    def __init__(
        self,
        keys_of_texts: Keys,
        finder: redis.Redis,
        keeper: redis.Redis,
        *,
        queue: str,
        bound: int,
    ) -> None:
        """`bound`: bytes of Redis's memory that the entries of a queue may take."""
        self.keys = keys_of_texts
        self._finder = finder
        self._keeper = keeper
        self._hash, self._used = keys.cache(queue), keys.cache_used(queue)
        self._bound = bound
        self._pauses = iter(_BACKOFF)
        #: Monotonic time until which there are no look-ups.
        self._asks_again = 0.0

    def find(self, wanted: Sequence[bytes]) -> list[bytes | None] | None:
        """Read the value of each key in one round trip; None if Redis fails or is too slow.

        A failure disables look-ups for a while.
        """
        if time.monotonic() < self._asks_again:
            return None
        try:
            with self._finder.pipeline(transaction=False) as pipe:
                for part in _parts(wanted):
                    pipe.hmget(self._hash, part)
                answers = cast("list[list[bytes | None]]", pipe.execute())
        except redis.RedisError as error:
            pause = next(self._pauses)
            logger.warning("The cache is not asked for %.0f s: %s", pause, type(error).__name__)
            self._asks_again = time.monotonic() + pause
            return None
        self._pauses = iter(_BACKOFF)
        return [value for answer in answers for value in answer]

    def keep(self, entries: Mapping[bytes, bytes], used: Iterable[bytes]) -> bool:
        """Store entries and note the use of others, in one round trip. Returns False on errors."""
        try:
            with self._keeper.pipeline(transaction=False) as pipe:
                for part in _parts(list(used)):
                    self._script(pipe, part, ())
                for several in _scripts(entries):
                    self._script(pipe, (), several)
                pipe.execute()
        except redis.RedisError as error:
            logger.warning("Vectors were not cached: %s", type(error).__name__)
            if isinstance(error, redis.OutOfMemoryError):
                self._give_way()
            return False
        return True

    def _give_way(self) -> None:
        """Evict entries: on a full server, other data matters more."""
        try:
            self._script(self._keeper, (), (), bound=0)
        except redis.RedisError as error:
            logger.warning("The cache does not give way: %s", type(error).__name__)

    def _script(
        self,
        client: redis.Redis,
        used: Sequence[bytes],
        entries: Sequence[bytes],
        bound: int | None = None,
    ) -> None:
        bounds = (self._bound if bound is None else bound, _MOST_REMOVED, _FORGOTTEN_AFTER)
        client.eval(CACHE, 2, self._hash, self._used, *bounds, len(used), *used, *entries)


def _revision(spec: ModelSpec, info: ModelInfo) -> bytes | None:
    try:
        return revision(spec, info)
    except (ModelUnavailable, OSError) as error:
        logger.warning("Vectors of model %s are not cached: %s", spec.name, error)
        return None


def _parts(wanted: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(wanted), _KEYS_A_COMMAND):
        yield wanted[start : start + _KEYS_A_COMMAND]


def _scripts(entries: Mapping[bytes, bytes]) -> Iterator[list[bytes]]:
    """Alternating keys and values, in parts of the bytes that one script may take."""
    several: list[bytes] = []
    size = 0
    for key, value in entries.items():
        if several and size + len(value) > _BYTES_A_SCRIPT:
            yield several
            several, size = [], 0
        several += (key, value)
        size += len(value)
    if several:
        yield several
