"""Jobs that came back from a dead worker: which of them it died of."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import redis

from worker.contract import keys
from worker.contract.store import JobStore

logger = logging.getLogger(__name__)

#: Seconds that the count of a job's attempts is kept.
_TTL = 24 * 3600
#: KEYS attempts. ARGV seconds. A full server refuses a script only before its first write.
_TAKE_BACK = """
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('DECR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""


class Suspects:
    """Counts how often a redelivered job began to run, alone, and was not heard of again.

    A worker that dies takes all the jobs in its batch with it, so the first death says nothing
    about one of them. From then on each runs in a batch of its own, and the count is its alone.
    """

    def __init__(self, store: JobStore, max_attempts: int) -> None:
        self._client = store.client
        self._take_back = self._client.register_script(_TAKE_BACK)
        self._max_attempts = max_attempts

    def deaths(self, job_id: str) -> int:
        """Count an attempt that begins now. More than 0: it has killed that many, do not run it.

        Where Redis is away nothing is counted, and the job runs. Blocks the device thread for one
        round trip.
        """
        try:
            with self._client.pipeline() as pipe:
                pipe.incr(keys.attempts(job_id))
                pipe.expire(keys.attempts(job_id), _TTL)
                attempts: int = pipe.execute()[0]
        except redis.RedisError as error:
            logger.warning("An attempt was not counted: %s", type(error).__name__)
            return 0
        return attempts - 1 if attempts > self._max_attempts else 0

    def clear(self, job_ids: Iterable[str]) -> None:
        """Take back an attempt of jobs that a clean shutdown interrupted."""
        try:
            with self._client.pipeline() as pipe:
                for job_id in job_ids:
                    self._take_back(keys=[keys.attempts(job_id)], args=[_TTL], client=pipe)
                if pipe:
                    pipe.execute()
        except redis.RedisError as error:
            logger.warning("Attempts were not taken back: %s", type(error).__name__)
