"""Count the crashes of redelivered jobs, to find the poison jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import cast
from uuid import uuid4

import redis

from worker.contract import keys
from worker.store.jobs import JobStore
from worker.store.scripts import ATTEMPT

logger = logging.getLogger(__name__)

#: Seconds that the attempts of a job are kept.
_TTL = 24 * 3600
#: Set while a task other than `embed` runs isolated in this process: a crash counts against it.
isolated = threading.Event()


class PoisonJobs:
    """Counts the isolated runs of a redelivered job that began and did not end.

    A crash affects all jobs of the batch, so the first crash does not identify the poison job. From
    then on each of these jobs runs isolated, with a count of its own.

    An attempt is the tag of a lease in the set `keys.crashes`, so a repeated call does not change
    the count. A delivery without a lease has the name of its process instead, which can crash only
    once.
    """

    def __init__(self, store: JobStore, max_attempts: int, *, isolates: bool = False) -> None:
        """`isolates`: count tasks other than `embed`, see `isolated`."""
        self._isolates = isolates
        self._client = store.client
        self._begin = self._client.register_script(ATTEMPT)
        self._max_attempts = max_attempts
        self._process = f"process-{uuid4().hex}"

    def begin(self, job_id: str, tag: str) -> int:
        """Count a delivery that starts now; `tag` names its lease, or is "".

        Return 0 if it may run, else the number of crashes. If Redis is away the delivery runs
        without being counted. It is not counted while another task runs `isolated`, either. Blocks
        for one round trip.
        """
        counted = self._isolates or not isolated.is_set()
        try:
            attempts = cast(
                "int",
                self._begin(
                    keys=[keys.crashes(job_id), keys.attempts(job_id)],
                    args=[(tag or self._process) if counted else "", _TTL],
                ),
            )
        except redis.RedisError as error:
            logger.warning("An attempt was not counted: %s", type(error).__name__)
            return 0
        crashes = attempts - counted
        return crashes if crashes >= self._max_attempts else 0

    def clear(self, deliveries: Iterable[tuple[str, str]]) -> None:
        """Remove the attempts of deliveries (job id, tag) that ended without a crash."""
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for job_id, tag in deliveries:
                    pipe.srem(keys.crashes(job_id), tag or self._process)
                if pipe:
                    pipe.execute()
        except redis.RedisError as error:
            logger.warning("Attempts were not taken back: %s", type(error).__name__)
